"""Tiny models of Hugging Face, and a run of ours over a paged cache that is easy to check."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata, ForwardContext
from pagetwin.engine.models.loader import LoadedModel

BLOCK_SIZE = 4
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _llama(**changes: Any) -> PreTrainedConfig:
    return LlamaConfig(**{**SIZES, **changes})


def _rope(rope_type: str, **numbers: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **numbers}}


_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": _llama,
    "llama_tied": lambda: _llama(tie_word_embeddings=True),
    "llama_biased": lambda: _llama(attention_bias=True, mlp_bias=True),
    "llama_one_kv_head": lambda: _llama(num_key_value_heads=1),
    "llama_head_dim": lambda: _llama(head_dim=16),
    "llama_rope_llama3": lambda: _llama(**_rope("llama3", **_LLAMA3)),
    "llama_rope_linear": lambda: _llama(**_rope("linear", factor=4.0)),
    "llama_rope_dynamic": lambda: _llama(**_rope("dynamic", factor=2.0)),
    "llama_rope_yarn": lambda: _llama(
        **_rope("yarn", factor=4.0, original_max_position_embeddings=64)
    ),
    "mistral_window": lambda: MistralConfig(**SIZES, sliding_window=7),
    "mistral_full": lambda: MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2_window": lambda: Qwen2Config(**SIZES, **_WINDOW),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "qwen3_window_tied": lambda: Qwen3Config(
        **SIZES, head_dim=16, tie_word_embeddings=True, **_WINDOW
    ),
}


def make_hf_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A float32 model whose every weight is random: norms and biases too, none 1 or 0."""
    config = CONFIGS[name]()
    factory: Any = AutoModelForCausalLM
    model: Any = factory.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            deviation = 0.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
            if parameter.ndim == 1:
                parameter += 1.0
    evaluated: PreTrainedModel = model.eval()
    return evaluated


@pytest.fixture(params=list(CONFIGS))
def config_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def hf_model() -> Callable[[str], PreTrainedModel]:
    return make_hf_model


class NaiveBackend(AttentionBackend):
    """Attention as the interface words it: one sequence after the other, every score, a mask."""

    name = "naive"

    @classmethod
    def rejection(cls, spec: AttentionSpec) -> str | None:
        return None

    def forward(
        self,
        q: Tensor,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        *,
        scale: float,
        sliding_window: int = 0,
    ) -> Tensor:
        outputs = []
        sizes = metadata.query_start_loc.diff().tolist()
        for i, queries in enumerate(torch.split(q, sizes)):
            length = int(metadata.seq_lens[i])
            table = metadata.block_tables[metadata.table_rows[i]]
            blocks = table[: -(-length // BLOCK_SIZE)].long()
            cached = kv_cache[:, blocks].flatten(1, 2)[:, :length]
            keys, values = cached.repeat_interleave(q.shape[1] // kv_cache.shape[3], dim=2)
            position = torch.arange(length - len(queries), length)[:, None]
            distance = position - torch.arange(length)
            hidden = (distance < 0) | (distance >= (sliding_window or length))
            scores = torch.einsum("qhd,shd->hqs", queries * scale, keys)
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            outputs.append(torch.einsum("hqs,shd->qhd", weights, values))
        return torch.cat(outputs)


def run_paged(loaded: LoadedModel, prompts: Sequence[Sequence[int]], chunk: int) -> list[Tensor]:
    """Logits [len(prompt), vocab_size] of every prompt: all in one batch, `chunk` tokens a step.

    Block tables are dealt out in turn from the top, so that no sequence's blocks are adjacent.
    """
    spec = loaded.spec
    widest = max(-(-len(prompt) // BLOCK_SIZE) for prompt in prompts)
    num_blocks = 1 + widest * len(prompts)
    tables = torch.arange(num_blocks - 1, 0, -1, dtype=torch.int32).view(widest, -1).T
    attention = AttentionSpec(
        head_size=spec.head_size,
        num_heads=spec.num_attention_heads,
        num_kv_heads=spec.num_kv_heads,
        dtype=spec.dtype,
        block_size=BLOCK_SIZE,
        sliding_windows=spec.sliding_windows,
    )
    shape = (2, num_blocks, BLOCK_SIZE, spec.num_kv_heads, spec.head_size)
    caches = [torch.full(shape, torch.nan, dtype=spec.dtype) for _ in range(spec.num_layers)]
    logits: list[list[Tensor]] = [[] for _ in prompts]
    for start in range(0, max(map(len, prompts)), chunk):
        rows = [i for i, prompt in enumerate(prompts) if start < len(prompt)]
        parts = [torch.tensor(prompts[i][start : start + chunk]) for i in rows]
        places = [torch.arange(start, start + len(part)) for part in parts]
        slots = [
            tables[i, place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
            for i, place in zip(rows, places, strict=True)
        ]
        sizes = torch.tensor([0, *map(len, parts)])
        metadata = AttentionMetadata(
            slot_mapping=torch.cat(slots).long(),
            query_start_loc=sizes.cumsum(0).int(),
            seq_lens=(sizes[1:] + start).int(),
            block_tables=tables,
            table_rows=torch.tensor(rows, dtype=torch.int32),
            max_query_len=int(sizes.max()),
            max_seq_len=start + int(sizes.max()),
        )
        context = ForwardContext(NaiveBackend(attention), metadata, caches)
        with torch.inference_mode():
            hidden = loaded.model.forward(torch.cat(parts), torch.cat(places), context)
            step_logits = loaded.model.compute_logits(hidden)
        for i, part in zip(rows, torch.split(step_logits, sizes[1:].tolist()), strict=True):
            logits[i].append(part)
    return [torch.cat(parts) for parts in logits]


@pytest.fixture
def paged_logits() -> Callable[[LoadedModel, Sequence[Sequence[int]], int], list[Tensor]]:
    return run_paged


_GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    head = {"lm_head": "output", "model.norm": "output_norm", "model.embed_tokens": "token_embd"}
    stem, _, kind = name.rpartition(".")
    if stem in head:
        return f"{head[stem]}.{kind}"
    _, _, layer, part = stem.split(".", maxsplit=3)
    return f"blk.{layer}.{_GGUF_NAMES[part]}.{kind}"


def _reordered(name: str, values: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    """llama.cpp's order of query and key rows: channels i and i + size / 2 side by side."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, num_heads in heads.items():
        if config.model_type == "llama" and f".{part}." in name:
            halves = values.reshape(num_heads, 2, -1, *values.shape[1:])
            return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
    return values


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> None:
    """The model as llama.cpp's converter lays it out, matrices in `kind`, with a byte tokenizer."""
    config: Any = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(getattr(config, "head_dim", None) or config.hidden_size // 4)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    _add_tokenizer(writer, config)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = _reordered(name, tensor.numpy(), config)
        stored = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else kind
        raw = gguf.quantize(values, stored)
        writer.add_tensor(_gguf_name(name), raw, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, config: Any) -> None:
    printable = [chr(i) for i in range(33, 33 + config.vocab_size - 6)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *printable, "Ġ", "ĠĠ", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "a b"])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


@pytest.fixture
def gguf_writer() -> Callable[..., None]:
    return write_gguf
