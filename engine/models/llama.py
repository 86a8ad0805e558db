"""The Llama family over the paged cache: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

Written as for one sequence of tokens on one device. Which tokens belong together, and what
they may see, is known to the attention backend alone; all else works token by token.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagetwin.engine.attention.metadata import ForwardContext
from pagetwin.engine.layers.activation import silu_and_multiply
from pagetwin.engine.layers.attention import Attention
from pagetwin.engine.layers.linear import Linear, NewParameter
from pagetwin.engine.layers.norm import RMSNorm
from pagetwin.engine.layers.rotary import RotaryEmbedding, rotate
from pagetwin.engine.models.llama_config import LlamaConfig, read_llama_config

Slots = Iterator[tuple[str, Tensor]]


class LlamaMLP(nn.Module):
    def __init__(self, config: LlamaConfig, new: NewParameter) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        gate_up = {"gate_proj": inner, "up_proj": inner}
        self.gate_up_proj = Linear(hidden, gate_up, new, bias=config.mlp_bias)
        self.down_proj = Linear(inner, {"down_proj": hidden}, new, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(silu_and_multiply(self.gate_up_proj(x)))
        return y

    def slots(self, prefix: str) -> Slots:
        yield from self.gate_up_proj.slots(prefix)
        yield from self.down_proj.slots(prefix)


class LlamaAttention(nn.Module):
    def __init__(self, config: LlamaConfig, layer_index: int, new: NewParameter) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.q_size = config.num_attention_heads * config.head_size
        self.kv_size = config.num_kv_heads * config.head_size
        qkv = {"q_proj": self.q_size, "k_proj": self.kv_size, "v_proj": self.kv_size}
        output = {"o_proj": config.hidden_size}
        self.qkv_proj = Linear(config.hidden_size, qkv, new, bias=config.qkv_bias)
        self.o_proj = Linear(self.q_size, output, new, bias=config.output_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_size, config.rms_norm_eps, new)
            self.k_norm = RMSNorm(config.head_size, config.rms_norm_eps, new)
        self.attention = Attention(
            layer_index,
            scale=config.head_size**-0.5,
            sliding_window=config.sliding_windows[layer_index],
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, context: ForwardContext) -> Tensor:
        qkv = self.qkv_proj(x).split((self.q_size, self.kv_size, self.kv_size), dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_size)) for part in qkv)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y: Tensor = self.o_proj(self.attention(q, k, v, context).flatten(-2))
        return y

    def slots(self, prefix: str) -> Slots:
        yield from self.qkv_proj.slots(prefix)
        yield from self.o_proj.slots(prefix)
        if self.q_norm is not None and self.k_norm is not None:
            yield f"{prefix}.q_norm.weight", self.q_norm.weight
            yield f"{prefix}.k_norm.weight", self.k_norm.weight


class LlamaLayer(nn.Module):
    def __init__(self, config: LlamaConfig, layer_index: int, new: NewParameter) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, new)
        self.self_attn = LlamaAttention(config, layer_index, new)
        self.post_attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, new)
        self.mlp = LlamaMLP(config, new)

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        rotation: tuple[Tensor, Tensor],
        context: ForwardContext,
    ) -> tuple[Tensor, Tensor]:
        """The layer's output, not yet added to the residual, which comes second."""
        x, residual = self.input_norm.add(x, residual)
        x = self.self_attn(x, *rotation, context)
        x, residual = self.post_attention_norm.add(x, residual)
        return self.mlp(x), residual

    def slots(self, prefix: str) -> Slots:
        yield f"{prefix}.input_layernorm.weight", self.input_norm.weight
        yield from self.self_attn.slots(f"{prefix}.self_attn")
        yield f"{prefix}.post_attention_layernorm.weight", self.post_attention_norm.weight
        yield from self.mlp.slots(f"{prefix}.mlp")


class Llama(nn.Module):
    """Every member of the family; follows `pagetwin.engine.models.spec.Model`."""

    def __init__(self, config: LlamaConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        new = NewParameter(dtype, device)
        self.spec = config.spec(dtype)
        self.rotary = RotaryEmbedding(config.rope, device)
        self.layers = nn.ModuleList(
            LlamaLayer(config, index, new) for index in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, new)
        self.lm_head = new.matrix(config.vocab_size, config.hidden_size)
        self.is_tied = config.tie_word_embeddings
        self.embed_tokens = (
            self.lm_head if self.is_tied else new(config.vocab_size, config.hidden_size)
        )

    @classmethod
    def from_hf_config(
        cls, config: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device
    ) -> Self:
        architecture = config["architectures"][0]
        return cls(read_llama_config(config, architecture), dtype=dtype, device=device)

    def forward(self, input_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """int64 [num_tokens] twice, to normalised hidden states [num_tokens, hidden_size]."""
        rotation = self.rotary(positions)
        x = F.embedding(input_ids, self.embed_tokens)
        residual = torch.zeros_like(x)
        for layer in self.layers:
            x, residual = layer(x, residual, rotation, context)
        return self.norm.add(x, residual)[0]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [num_rows, hidden_size] to float32 logits [num_rows, vocab_size].

        Half precision is left before the product is rounded: rounded logits tie.
        """
        if hidden.dtype == torch.float32:
            return F.linear(hidden, self.lm_head)
        if hidden.is_cuda:
            return torch.mm(hidden, self.lm_head.T, out_dtype=torch.float32)
        x = hidden.float()
        # Widened piece by piece, each still in the processor's cache when it is multiplied.
        return torch.cat(
            [F.linear(x, rows.float()) for rows in torch.split(self.lm_head, 512)], dim=-1
        )

    def checkpoint_slots(self) -> dict[str, Tensor]:
        slots: dict[str, Tensor] = {"model.embed_tokens.weight": self.embed_tokens}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, LlamaLayer)
            slots.update(layer.slots(f"model.layers.{index}"))
        slots["model.norm.weight"] = self.norm.weight
        if not self.is_tied:
            slots["lm_head.weight"] = self.lm_head
        return slots

    def tied_names(self) -> dict[str, str]:
        return {"lm_head.weight": "model.embed_tokens.weight"} if self.is_tied else {}
