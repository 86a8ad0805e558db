"""Angles, tables and rotations equal those of Hugging Face."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from pagetwin.engine.errors import ModelError
from pagetwin.engine.layers.rotary import RopeConfig, RotaryEmbedding, rope_frequencies
from pagetwin.kernels.reference_layers import rope

CPU = torch.device("cpu")


def turned(x: Tensor, positions: Tensor, table: RotaryEmbedding) -> Tensor:
    """A copy of x [T, num_heads, head_size], turned."""
    x = x.clone()
    rope(x, positions, table.cos_sin)
    return x


PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn_mscale": {
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
    },
}


def both(name: str, head_size: int, theta: float, longest: int) -> tuple[RopeConfig, LlamaConfig]:
    rope_type, numbers = name.partition("_")[0], PARAMETERS[name]
    rope = RopeConfig(
        rotary_size=head_size,
        theta=theta,
        max_position_embeddings=longest,
        rope_type=rope_type,
        parameters=numbers,
    )
    config = LlamaConfig(
        head_dim=head_size,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": rope_type, "rope_theta": theta, **numbers},
    )
    return rope, config


@given(
    name=st.sampled_from(list(PARAMETERS)),
    head_size=st.sampled_from([32, 64, 80, 128]),
    theta=st.sampled_from([10000.0, 100000.0, 500000.0, 1000000.0]),
)
def test_frequencies_are_bit_equal_to_hugging_face(name: str, head_size: int, theta: float) -> None:
    config, hf_config = both(name, head_size, theta, longest=131072)
    ours, our_factor = rope_frequencies(config)
    theirs = LlamaRotaryEmbedding(hf_config)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs.inv_freq)
    assert our_factor == theirs.attention_scaling
    if name not in ("default", "dynamic"):
        plain, _ = rope_frequencies(both("default", head_size, theta, 131072)[0])
        assert not torch.equal(ours, plain), "the variant must stretch something"


@pytest.mark.parametrize("name", PARAMETERS)
def test_cosines_and_sines_equal_hugging_face_at_every_position(name: str) -> None:
    config, hf_config = both(name, head_size=32, theta=500000.0, longest=131072)
    table = RotaryEmbedding(config, CPU)
    positions = torch.arange(131072)
    cos, sin = table.cos_sin[: len(positions)].chunk(2, dim=-1)
    their_cos, their_sin = LlamaRotaryEmbedding(hf_config)(torch.zeros(1), positions[None])
    # The same float32 angles: what differs is the last bit of the cosine of some of them.
    tolerance = 2**-22 * float(their_cos.max())
    for half in (slice(16), slice(16, 32)):
        assert (cos - their_cos[0, :, half]).abs().max() <= tolerance
        assert (sin - their_sin[0, :, half]).abs().max() <= tolerance


def test_angles_are_right_where_half_precision_would_round_positions() -> None:
    config, _ = both("default", head_size=8, theta=10000.0, longest=40000)
    cos = RotaryEmbedding(config, CPU).cos_sin[[257, 4097, 32769], 0]
    exact = torch.tensor([257.0, 4097.0, 32769.0], dtype=torch.float64).cos()
    assert (cos.double() - exact).abs().max() < 1e-6


@given(
    num_heads=st.integers(1, 4),
    half=st.sampled_from([2, 8]),
    positions=st.lists(st.integers(0, 63), min_size=1, max_size=5),
)
def test_rotation_is_that_of_hugging_face(num_heads: int, half: int, positions: list[int]) -> None:
    config, hf_config = both("default", head_size=2 * half, theta=10000.0, longest=64)
    generator = torch.Generator().manual_seed(num_heads)
    x = torch.randn(len(positions), num_heads, 2 * half, generator=generator)
    ours = turned(x, torch.tensor(positions), RotaryEmbedding(config, CPU))
    cos, sin = LlamaRotaryEmbedding(hf_config)(x, torch.tensor([positions]))
    theirs, _ = apply_rotary_pos_emb(x[None], x[None], cos, sin, unsqueeze_dim=2)
    assert (ours - theirs[0]).abs().max() <= 2e-6


def test_channels_beyond_the_rotary_size_pass_unchanged() -> None:
    config = RopeConfig(rotary_size=4, theta=100.0, max_position_embeddings=32)
    table, positions = RotaryEmbedding(config, CPU), torch.tensor([0, 3, 31])
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))
    y = turned(x, positions, table)
    assert torch.equal(y[..., 4:], x[..., 4:])
    assert torch.equal(y[..., :4], turned(x[..., :4], positions, table))
    assert torch.equal(y[0], x[0]), "position 0 turns nothing"
    assert not torch.equal(y[1:, :, :4], x[1:, :, :4])


def test_a_token_turns_the_same_whatever_its_neighbours() -> None:
    config, _ = both("default", head_size=12, theta=10000.0, longest=512)
    table = RotaryEmbedding(config, CPU)
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(512, (37,), generator=generator)
    x = torch.randn(37, 3, 12, generator=generator)
    together = turned(x, positions, table)
    alone = [turned(x[i : i + 1], positions[i : i + 1], table) for i in range(37)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("name", "longest", "usable"),
    [("default", 100, 100), ("linear", 100, 400), ("dynamic", 100, 100), ("yarn", 100, 131072)],
)
def test_stretched_models_reach_further(name: str, longest: int, usable: int) -> None:
    assert both(name, 8, 10000.0, longest)[0].max_model_len == usable


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    assert "longrope" in ROPE_INIT_FUNCTIONS
    with pytest.raises(ModelError, match=r"rope_type 'longrope' .* default, linear, dynamic"):
        RopeConfig(rotary_size=8, theta=1e4, max_position_embeddings=8, rope_type="longrope")


def test_a_missing_number_is_named() -> None:
    config = RopeConfig(rotary_size=8, theta=1e4, max_position_embeddings=8, rope_type="linear")
    with pytest.raises(ModelError, match=r"type 'linear' in config.json have factor=None"):
        rope_frequencies(config)


@pytest.mark.parametrize("rotary_size", [0, 3])
def test_an_odd_number_of_channels_is_refused(rotary_size: int) -> None:
    with pytest.raises(ModelError, match=f"{rotary_size} rotated channels per head"):
        RopeConfig(rotary_size=rotary_size, theta=1e4, max_position_embeddings=8)
