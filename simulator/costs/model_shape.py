"""Decides what of a model's config.json costs time and memory: sizes, not names.

It needs no torch and no knowledge of architectures: any decoder in Hugging Face's format whose
attention keeps keys and values per head, dense or with experts. What a step costs beside its
matrices (norms, rotations, activations) is left out; so are sliding windows: their attention
counts as if it saw everything.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pagetwin.engine.errors import ModelError

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1}


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a decoder. `num_experts` is 1 for a dense one."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    """Of the MLP, or of one expert."""
    vocab_size: int
    num_experts: int = 1
    num_active_experts: int = 1
    """Experts that a token goes through."""
    is_gated: bool = True
    """The MLP has a gate beside its up projection."""
    tie_word_embeddings: bool = False

    @property
    def attention_parameters(self) -> int:
        """Of one layer's four projections."""
        heads = 2 * self.num_attention_heads + 2 * self.num_kv_heads
        return self.hidden_size * self.head_size * heads

    @property
    def expert_parameters(self) -> int:
        """Of one layer's MLP, or of one of its experts."""
        return (3 if self.is_gated else 2) * self.hidden_size * self.intermediate_size

    @property
    def head_parameters(self) -> int:
        """Of the matrix behind the logits."""
        return self.hidden_size * self.vocab_size

    @property
    def num_parameters(self) -> int:
        """All that memory must hold, vectors left out."""
        layer = self.attention_parameters + self.num_experts * self.expert_parameters
        tables = self.head_parameters * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * layer + tables

    @property
    def token_parameters(self) -> int:
        """Those of the layers that one token is multiplied with."""
        experts = self.num_active_experts * self.expert_parameters
        return self.num_layers * (self.attention_parameters + experts)

    def layer_parameters_read(self, num_tokens: int) -> float:
        """Expected parameters of the layers that a step of so many tokens reads.

        Of a dense model all; of experts those that some token was routed to, if routing is even.
        """
        unused = (1 - self.num_active_experts / self.num_experts) ** num_tokens
        experts = self.num_experts * (1 - unused)
        return self.num_layers * (self.attention_parameters + experts * self.expert_parameters)

    @property
    def attention_flops_per_pair(self) -> int:
        """Of one query that sees one key, all layers: two products of the head size, all heads."""
        return 4 * self.num_layers * self.num_attention_heads * self.head_size

    def kv_bytes_per_token(self, dtype: str, tensor_parallel: int = 1) -> int:
        """Keys and values of all layers, on each of so many GPUs (a head is not divided)."""
        heads = -(-self.num_kv_heads // tensor_parallel)
        return 2 * self.num_layers * heads * self.head_size * dtype_bytes(dtype)


def dtype_bytes(dtype: str) -> int:
    """Bytes of a number. Raises ModelError."""
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config.json, or of the one in a folder. Raises ModelError or OSError."""
    if path.is_dir():
        path = path / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}); restore it from the model") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no object; it is not a model's config.json")
    return config


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config.json's content, whatever its spacing and order."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The sizes in a config.json. Raises ModelError, naming what is missing or not understood."""
    config = config.get("text_config") or config
    if config.get("kv_lora_rank"):
        raise ModelError(
            f"kv_lora_rank={config['kv_lora_rank']} in config.json: attention with latent keys and "
            "values is not modelled; give measured histories of another model"
        )
    hidden, heads = _size(config, "hidden_size", "n_embd"), _size(config, "num_attention_heads")
    experts = _maybe(config, "num_experts", "num_local_experts", "n_routed_experts") or 1
    inner = "moe_intermediate_size" if experts > 1 else "intermediate_size"
    kv_heads = _maybe(config, "num_key_value_heads") or heads
    if kv_heads > heads:
        raise ModelError(
            f"num_key_value_heads={kv_heads} in config.json is above num_attention_heads={heads}; "
            "the file is damaged"
        )
    return ModelShape(
        num_layers=_size(config, "num_hidden_layers", "n_layer"),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        head_size=_maybe(config, "head_dim") or hidden // heads,
        intermediate_size=_size(config, inner, "intermediate_size"),
        vocab_size=_size(config, "vocab_size"),
        num_experts=experts,
        num_active_experts=_size(config, "num_experts_per_tok") if experts > 1 else 1,
        is_gated=config.get("hidden_act", "silu") in ("silu", "swish", "gelu_pytorch_tanh"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings")),
    )


def dtype_of(config: Mapping[str, Any]) -> str:
    """The dtype that a config.json names; bfloat16 if it names none."""
    named = config.get("dtype") or config.get("torch_dtype")
    dtype = str(named or "bfloat16").removeprefix("torch.")
    dtype_bytes(dtype)
    return dtype


def _maybe(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if value is not None:
            if type(value) is not int or value < 1:
                raise ModelError(f"{name}={value!r} in config.json is not a positive whole number")
            return value
    return None


def _size(config: Mapping[str, Any], *names: str) -> int:
    value = _maybe(config, *names)
    if value is None:
        raise ModelError(
            f"config.json has no {' or '.join(names)}; it is not a decoder whose costs are known"
        )
    return value
