"""The roofline: sizes from any config.json, floors in both resources, sums that go up."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.engine.errors import ConfigError, ModelError
from pagetwin.simulator.clock import to_seconds
from pagetwin.simulator.cost_model import StepComposition
from pagetwin.simulator.costs.datasheets import GPUS, gpu_named
from pagetwin.simulator.costs.model_shape import ModelShape, config_digest, dtype_of, shape_of
from pagetwin.simulator.costs.pool_size import num_blocks_in
from pagetwin.simulator.costs.roofline import PERFECT, Efficiency, Roofline
from pagetwin.simulator.step_clock import decode_parts

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "hidden_act": "silu",
}
SHAPE = shape_of(LLAMA_8B)
steps = st.builds(
    StepComposition,
    num_prefill_sequences=st.integers(0, 4),
    num_prefill_tokens=st.integers(0, 16384),
    prefill_area=st.integers(0, 10**9),
    num_decode_sequences=st.integers(0, 512),
    num_context_tokens=st.integers(0, 10**7),
    num_samples=st.integers(0, 512),
)


def roofline(**knobs: object) -> Roofline:
    return Roofline(**{"shape": SHAPE, "gpu": GPUS["H100"], **knobs})  # type: ignore[arg-type]


def test_parameters_are_those_of_the_models_names() -> None:
    assert SHAPE.num_parameters == pytest.approx(8.03e9, rel=0.001)
    assert SHAPE.kv_bytes_per_token("bfloat16") == 131072
    experts = shape_of(QWEN3_30B_A3B)
    assert experts.num_parameters == pytest.approx(30.5e9, rel=0.01)
    assert experts.token_parameters + experts.head_parameters == pytest.approx(3.3e9, rel=0.1)


def test_a_text_model_inside_another_is_found_and_the_dtype_is_read() -> None:
    assert shape_of({"vision_config": {}, "text_config": LLAMA_8B}) == SHAPE
    assert dtype_of(LLAMA_8B) == "bfloat16"
    assert dtype_of({}) == "bfloat16"
    assert config_digest(LLAMA_8B) == config_digest(dict(reversed(LLAMA_8B.items())))


def test_experts_are_read_as_tokens_come_to_use_them() -> None:
    experts = shape_of(QWEN3_30B_A3B)
    read = [experts.layer_parameters_read(tokens) for tokens in (1, 2, 8, 64, 10**6)]
    assert read == sorted(read)
    assert read[0] == pytest.approx(experts.token_parameters)
    assert read[-1] == pytest.approx(experts.num_parameters - 2 * experts.head_parameters)


def test_one_token_takes_the_time_of_reading_the_weights() -> None:
    base, slope, _ = roofline(efficiency=PERFECT).decode_line(1, 1)
    read = SHAPE.num_parameters - SHAPE.head_parameters  # The embedding lends one row.
    assert to_seconds(base) == pytest.approx(2 * read / 3.35e12, rel=1e-6)
    assert to_seconds(slope) == pytest.approx(131072 / 3.35e12, rel=1e-3)


def test_a_long_prefill_takes_the_time_of_its_arithmetic() -> None:
    parts = StepComposition(num_prefill_sequences=1, num_prefill_tokens=8192, num_samples=1)
    seconds = to_seconds(roofline(efficiency=PERFECT).ticks(parts))
    assert seconds == pytest.approx(2 * SHAPE.token_parameters * 8192 / 989.4e12, rel=0.02)


@given(steps, st.sampled_from(sorted(GPUS)), st.sampled_from([1, 2, 4]))
def test_more_of_anything_never_costs_less_and_nothing_is_under_the_floor(
    parts: StepComposition, gpu: str, count: int
) -> None:
    knobs = {"gpu": GPUS[gpu], "tensor_parallel": count}
    model, floor = roofline(**knobs), roofline(**knobs, efficiency=PERFECT)
    assert model.ticks(parts) >= floor.ticks(parts) >= 1
    for name in parts.__struct_fields__:
        if name == "num_repeated_tokens":
            continue
        more = msgspec.structs.replace(parts, **{name: getattr(parts, name) + 1})
        assert model.ticks(more) >= model.ticks(parts)


@given(st.integers(1, 1024), st.integers(0, 10**7))
def test_decode_steps_lie_on_their_line(num_sequences: int, context: int) -> None:
    model = roofline()
    repeated = context // 3
    base, slope, last = model.decode_line(num_sequences, context, repeated)
    assert last is None
    parts = decode_parts(num_sequences, context, repeated)
    assert model.ticks(parts) == base + slope * context


def test_more_gpus_divide_the_work_and_add_talk() -> None:
    one, two = roofline(), roofline(tensor_parallel=2)
    assert two.matmul_s(4096, 1) == pytest.approx(one.matmul_s(4096, 1) / 2)
    assert one.communication_s(4096) == 0
    slow = roofline(gpu=GPUS["L40S"], tensor_parallel=2)
    assert slow.communication_s(4096) > two.communication_s(4096) > 0
    assert roofline(pipeline_parallel=2).communication_s(1) > 0


def test_its_label_says_that_nobody_measured_it() -> None:
    assert roofline().label.startswith("uncalibrated")


def test_blocks_are_what_weights_leave() -> None:
    blocks = num_blocks_in(GPUS["H100"], SHAPE)
    assert 25_000 < blocks < 27_500, "about 54 GB at 2 MB a block"
    assert num_blocks_in(GPUS["H100"], SHAPE, tensor_parallel=2) > 2 * blocks
    assert num_blocks_in(GPUS["H100"], SHAPE, kv_dtype="float8") in (2 * blocks, 2 * blocks + 1)


@pytest.mark.parametrize("name", ["h100", "NVIDIA H100 80GB HBM3", "H100", "nvidia-h100"])
def test_a_gpu_is_found_by_its_name_or_its_drivers(name: str) -> None:
    assert gpu_named(name).name == "H100"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTXPRO6000"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_drivers_names_are_read_word_by_word(name: str, known: str) -> None:
    assert gpu_named(name).name == known


@pytest.mark.parametrize("name", ["h1000", "NVIDIA GH200 480GB", "xh100", "A100X", ""])
def test_a_name_that_only_holds_a_known_one_is_unknown(name: str) -> None:
    with pytest.raises(ConfigError, match="is unknown; datasheets are here for"):
        gpu_named(name)


def test_bad_input_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"V100.*H100"):
        gpu_named("V100")
    with pytest.raises(ConfigError, match="3 does not divide"):
        roofline(tensor_parallel=3)
    with pytest.raises(ConfigError, match="no peak for 'float8'"):
        roofline(gpu=GPUS["A100"], dtype="float8")
    with pytest.raises(ConfigError, match="no memory is left"):
        num_blocks_in(GPUS["RTX4090"], shape_of(QWEN3_30B_A3B))
    with pytest.raises(ConfigError, match=r"outside 0\.\.1"):
        Efficiency(compute=1.5)
    with pytest.raises(ModelError, match="no vocab_size"):
        shape_of({k: v for k, v in LLAMA_8B.items() if k != "vocab_size"})
    with pytest.raises(ModelError, match="latent"):
        shape_of({**LLAMA_8B, "kv_lora_rank": 512})
    with pytest.raises(ModelError, match="num_key_value_heads=64"):
        shape_of({**LLAMA_8B, "num_key_value_heads": 64})


def test_a_model_shape_survives_its_file() -> None:
    assert msgspec.json.decode(msgspec.json.encode(SHAPE), type=ModelShape) == SHAPE
