"""Decides what a config.json of the Llama family means, each architecture's defaults included.

The members differ in a few yes-or-no questions, answered here; the model asks only the answers.
Defaults are those of the configuration classes in `transformers`, which config.json may omit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pagetwin.engine.errors import ModelError
from pagetwin.engine.layers.rotary import RopeConfig
from pagetwin.engine.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """One model of the Llama family, complete."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_size: int
    rms_norm_eps: float
    rope: RopeConfig
    sliding_windows: tuple[int, ...]
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """Each head's queries and keys are normalised before they are turned."""
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_kv_heads:
            raise ModelError(
                f"num_attention_heads={self.num_attention_heads} in config.json is not a multiple "
                f"of num_key_value_heads={self.num_kv_heads}; the file is damaged"
            )

    def spec(self, dtype: torch.dtype) -> ModelSpec:
        return ModelSpec(
            num_layers=self.num_layers,
            num_attention_heads=self.num_attention_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            vocab_size=self.vocab_size,
            max_model_len=self.rope.max_model_len,
            sliding_windows=self.sliding_windows,
            eos_token_ids=self.eos_token_ids,
            dtype=dtype,
        )


@dataclass(frozen=True)
class _Variant:
    """How one architecture differs from the others."""

    defaults: Mapping[str, Any]
    qkv_bias: bool | None = None
    """None: as attention_bias says, and the output projection with it."""
    qk_norm: bool = False
    windows_by_layer: bool = False
    """sliding_window counts only with use_sliding_window, for the layers that layer_types or
    max_window_layers name; else for all layers."""


_COMMON = {"rms_norm_eps": 1e-6, "hidden_act": "silu"}
_QWEN = {
    **_COMMON,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_VARIANTS = {
    "LlamaForCausalLM": _Variant({**_COMMON, "max_position_embeddings": 2048, "eos_token_id": 2}),
    "MistralForCausalLM": _Variant(
        {
            **_COMMON,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "eos_token_id": 2,
        },
        qkv_bias=False,
    ),
    "Qwen2ForCausalLM": _Variant(_QWEN, qkv_bias=True, windows_by_layer=True),
    "Qwen3ForCausalLM": _Variant({**_QWEN, "head_dim": 128}, qk_norm=True, windows_by_layer=True),
}


@dataclass(frozen=True)
class _Reader:
    """config.json over an architecture's defaults."""

    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        return self.values[name] if name in self.values else self.defaults.get(name)

    def size(self, name: str) -> int:
        value = self.get(name)
        if type(value) is not int or value < 1:
            raise ModelError(
                f"{name} in config.json is {value!r}, not a positive whole number; "
                "restore the file from where the model came from"
            )
        return value

    def number(self, name: str) -> float:
        value = self.get(name)
        if not isinstance(value, int | float):
            raise ModelError(f"{name} in config.json is {value!r}, not a number; correct the file")
        return float(value)


def read_llama_config(config: Mapping[str, Any], architecture: str) -> LlamaConfig:
    """`config` is the content of config.json; ModelError names what is missing or unsupported."""
    variant = _VARIANTS[architecture]
    reader = _Reader(config, variant.defaults)
    if reader.get("hidden_act") not in ("silu", "swish"):
        raise ModelError(
            f"hidden_act={reader.get('hidden_act')!r} in config.json is not supported by "
            f"{architecture}; only 'silu' is"
        )
    attention_bias = bool(reader.get("attention_bias"))
    num_heads = reader.size("num_attention_heads")
    has_kv_heads = reader.get("num_key_value_heads") is not None
    return LlamaConfig(
        vocab_size=reader.size("vocab_size"),
        hidden_size=reader.size("hidden_size"),
        intermediate_size=reader.size("intermediate_size"),
        num_layers=reader.size("num_hidden_layers"),
        num_attention_heads=num_heads,
        num_kv_heads=reader.size("num_key_value_heads") if has_kv_heads else num_heads,
        head_size=_head_size(reader),
        rms_norm_eps=reader.number("rms_norm_eps"),
        rope=_read_rope(reader),
        sliding_windows=_read_windows(reader, variant),
        qkv_bias=attention_bias if variant.qkv_bias is None else variant.qkv_bias,
        output_bias=attention_bias if variant.qkv_bias is None else False,
        mlp_bias=architecture == "LlamaForCausalLM" and bool(reader.get("mlp_bias")),
        qk_norm=variant.qk_norm,
        tie_word_embeddings=bool(reader.get("tie_word_embeddings")),
        eos_token_ids=_read_eos(reader.get("eos_token_id")),
    )


def _head_size(reader: _Reader) -> int:
    if reader.get("head_dim") is not None:
        return reader.size("head_dim")
    return reader.size("hidden_size") // reader.size("num_attention_heads")


def _read_rope(reader: _Reader) -> RopeConfig:
    """`rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of before."""
    parameters = {**(reader.get("rope_scaling") or {}), **(reader.get("rope_parameters") or {})}
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = parameters.get("rope_theta") or reader.get("rope_theta") or 10000.0
    portion = parameters.get("partial_rotary_factor") or reader.get("partial_rotary_factor") or 1.0
    if reader.get("original_max_position_embeddings") is not None:
        parameters["original_max_position_embeddings"] = reader.size(
            "original_max_position_embeddings"
        )
    return RopeConfig(
        rotary_size=int(_head_size(reader) * portion),
        theta=float(theta),
        max_position_embeddings=reader.size("max_position_embeddings"),
        rope_type=rope_type,
        parameters=parameters,
    )


def _read_windows(reader: _Reader, variant: _Variant) -> tuple[int, ...]:
    num_layers = reader.size("num_hidden_layers")
    window = reader.get("sliding_window") or 0
    if not variant.windows_by_layer:
        return (window,) * num_layers
    if not reader.get("use_sliding_window"):
        window = 0
    types = reader.get("layer_types")
    if types is None:
        first = reader.get("max_window_layers")
        return tuple(window if layer >= first else 0 for layer in range(num_layers))
    if len(types) != num_layers or not set(types) <= {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"layer_types in config.json has {len(types)} entries of {sorted(set(types))}; needed "
            f"are {num_layers}, each 'full_attention' or 'sliding_attention'"
        )
    if "sliding_attention" in types and not window:
        raise ModelError(
            "layer_types in config.json has 'sliding_attention', but there is no window: "
            "use_sliding_window is off or sliding_window is not set; correct one of them"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


def _read_eos(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
