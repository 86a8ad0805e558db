"""config.json is understood as the configuration classes of Hugging Face understand it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from pagetwin.engine.errors import ModelError
from pagetwin.engine.models.llama_config import read_llama_config

CLASSES: dict[str, type[PreTrainedConfig]] = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
}
REQUIRED: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
}


def hf_windows(config: Any) -> tuple[int, ...]:
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * 30
    window = config.sliding_window if hasattr(config, "sliding_window") else None
    return tuple((window or 0) if kind == "sliding_attention" else 0 for kind in types)


@given(
    architecture=st.sampled_from(list(CLASSES)),
    optional=st.fixed_dictionaries(
        {},
        optional={
            "num_key_value_heads": st.sampled_from([1, 8, 32]),
            "head_dim": st.sampled_from([8, 64]),
            "max_position_embeddings": st.just(512),
            "rms_norm_eps": st.just(1e-5),
            "tie_word_embeddings": st.booleans(),
            "attention_bias": st.booleans(),
            "sliding_window": st.sampled_from([7, None]),
            "use_sliding_window": st.booleans(),
            "max_window_layers": st.integers(0, 31),
            "rope_theta": st.sampled_from([10000.0, 1e6]),
            "eos_token_id": st.sampled_from([None, 5, [5, 6]]),
        },
    ),
)
def test_what_config_json_leaves_out_is_what_hugging_face_assumes(
    architecture: str, optional: dict[str, Any]
) -> None:
    hf: Any = CLASSES[architecture](**REQUIRED, **optional)
    ours = read_llama_config({**REQUIRED, **optional}, architecture)
    assert ours.num_kv_heads == hf.num_key_value_heads
    assert ours.head_size == (getattr(hf, "head_dim", None) or 4)
    assert ours.rope.max_position_embeddings == hf.max_position_embeddings
    assert ours.rms_norm_eps == hf.rms_norm_eps
    assert ours.tie_word_embeddings == hf.tie_word_embeddings
    assert ours.rope.theta == hf.rope_parameters["rope_theta"]
    assert ours.sliding_windows == hf_windows(hf)
    eos = [] if hf.eos_token_id is None else [hf.eos_token_id]
    assert list(ours.eos_token_ids) == (eos[0] if eos and isinstance(eos[0], list) else eos)
    # What transformers saves, in its own words of today, reads the same.
    again = read_llama_config(json.loads(hf.to_json_string()), architecture)
    assert (again.sliding_windows, again.rope.theta) == (ours.sliding_windows, ours.rope.theta)
    assert (again.head_size, again.eos_token_ids) == (ours.head_size, ours.eos_token_ids)


def test_rope_scaling_of_before_reads_like_rope_parameters_of_today() -> None:
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    numbers["original_max_position_embeddings"] = 8192
    old = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **numbers}}
    older = {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **numbers}}
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **numbers}}
    read = [
        read_llama_config({**REQUIRED, **c}, "LlamaForCausalLM").rope for c in (old, older, new)
    ]
    assert {rope.rope_type for rope in read} == {"llama3"}
    assert {rope.theta for rope in read} == {5e5}
    assert {rope.number("factor") for rope in read} == {8.0}


def test_layer_types_decide_which_layers_have_the_window() -> None:
    types = ["full_attention", "sliding_attention"] * 15
    config = {"layer_types": types, "use_sliding_window": True, "sliding_window": 7}
    ours = read_llama_config({**REQUIRED, **config}, "Qwen3ForCausalLM")
    assert ours.sliding_windows == (0, 7) * 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size in config.json is None, not a positive whole number"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers in config.json is '3'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' in config.json is not supported"),
        ({"num_key_value_heads": 5}, "num_attention_heads=32 .* num_key_value_heads=5"),
        ({"rms_norm_eps": None}, "rms_norm_eps in config.json is None, not a number"),
        ({"layer_types": ["full_attention"]}, "has 1 entries .* needed are 30"),
        ({"layer_types": ["sliding_attention"] * 30}, "there is no window"),
    ],
)
def test_a_damaged_config_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_llama_config({**REQUIRED, **change}, "Qwen3ForCausalLM")
