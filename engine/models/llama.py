"""The Llama family over the paged cache: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

Written as for one sequence of tokens on one device. Which tokens belong together, and what
they may see, is known to the attention backend alone; all else works token by token.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagetwin.engine.attention.metadata import ForwardContext, SampledRows
from pagetwin.engine.layers.attention import Attention
from pagetwin.engine.layers.embedding import embed
from pagetwin.engine.layers.linear import Linear, NewParameter
from pagetwin.engine.layers.norm import RMSNorm
from pagetwin.engine.layers.rotary import RotaryEmbedding
from pagetwin.engine.models.llama_config import LlamaConfig, read_llama_config
from pagetwin.kernels.dispatch import uses_triton
from pagetwin.kernels.linear import linear

Slots = Iterator[tuple[str, Tensor]]


class LlamaMLP(nn.Module):
    def __init__(self, config: LlamaConfig, new: NewParameter) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        gate_up = {"gate_proj": inner, "up_proj": inner}
        self.gate_up_proj = Linear(hidden, gate_up, new, bias=config.mlp_bias)
        self.down_proj = Linear(inner, {"down_proj": hidden}, new, bias=config.mlp_bias)

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """x and what the MLP adds to it, [num_tokens, hidden_size]."""
        return self.down_proj.added_to(x, self.gate_up_proj.gated_of_norm(x, norm))

    def slots(self, prefix: str) -> Slots:
        yield from self.gate_up_proj.slots(prefix)
        yield from self.down_proj.slots(prefix)


class LlamaAttention(nn.Module):
    def __init__(self, config: LlamaConfig, layer_index: int, new: NewParameter) -> None:
        super().__init__()
        head_size = config.head_size
        q_size = config.num_attention_heads * head_size
        kv_size = config.num_kv_heads * head_size
        qkv = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        output = {"o_proj": config.hidden_size}
        self.qkv_proj = Linear(config.hidden_size, qkv, new, bias=config.qkv_bias)
        self.o_proj = Linear(q_size, output, new, bias=config.output_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(head_size, config.rms_norm_eps, new)
            self.k_norm = RMSNorm(head_size, config.rms_norm_eps, new)
        self.attention = Attention(
            layer_index,
            config.num_attention_heads,
            head_size,
            scale=head_size**-0.5,
            sliding_window=config.sliding_windows[layer_index],
            q_norm=self.q_norm,
            k_norm=self.k_norm,
        )

    def forward(
        self,
        x: Tensor,
        norm: RMSNorm,
        place: tuple[Tensor, Tensor],
        context: ForwardContext,
        sampled: SampledRows | None,
    ) -> Tensor:
        """x and what attention adds to it, [num_tokens, hidden_size], or only those rows of it.

        `place` is the rotary table and the tokens' positions.
        """
        attended = self.attention(self.qkv_proj.of_norm(x, norm), *place, context, sampled)
        return self.o_proj.added_to(x if sampled is None else x[sampled.index], attended)

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
        place: tuple[Tensor, Tensor],
        context: ForwardContext,
        sampled: SampledRows | None,
    ) -> Tensor:
        x = self.self_attn(x, self.input_norm, place, context, sampled)
        y: Tensor = self.mlp(x, self.post_attention_norm)
        return y

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
        """int64 [num_tokens] twice, to normalised hidden states of the wanted rows.

        The last layer needs every token's keys and values, but nothing else of rows that nobody
        asks for.
        """
        place = self.rotary.cos_sin, positions
        x = embed(input_ids, positions, self.embed_tokens, context)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x, place, context, context.sampled if index == last else None)
        y: Tensor = self.norm(x)
        return y

    def compute_logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Hidden states [num_rows, hidden_size] to float32 logits [num_rows, vocab_size].

        Half precision is left before the product is rounded: rounded logits tie.
        """
        if uses_triton(hidden):
            if out is None:
                shape = len(hidden), len(self.lm_head)
                out = torch.empty(shape, dtype=torch.float32, device=hidden.device)
            return linear(hidden, self.lm_head, out=out)
        logits = self._logits_on_cpu(hidden)
        return logits if out is None else out.copy_(logits)

    def _logits_on_cpu(self, hidden: Tensor) -> Tensor:
        if hidden.dtype == torch.float32:
            return F.linear(hidden, self.lm_head)
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
