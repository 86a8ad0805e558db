"""The rotary kernels, bit for bit: alone against the reference, fused against their parts."""

import pytest
import torch
from torch import Tensor

from pagetwin.kernels import reference_layers as layers
from pagetwin.kernels.kv_write import write_kv
from pagetwin.kernels.norm import rms_norm
from pagetwin.kernels.rotary import (
    qk_norm_rope_write,
    qk_norm_rope_write_op,
    rope,
    rope_op,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NUM_POSITIONS = 300
EPS = 1e-6


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def cos_sin_table(rotary_size: int, device: torch.device) -> Tensor:
    angles = torch.arange(NUM_POSITIONS)[:, None] * torch.logspace(0, -4, rotary_size // 2)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)


def positions_of(num_tokens: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(NUM_POSITIONS, (num_tokens,), generator=generator).to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("num_heads", "head_size", "rotary_size"), [(1, 64, 64), (3, 80, 80), (11, 64, 16), (2, 96, 24)]
)
def test_rope_is_the_reference_to_the_bit(
    device: torch.device,
    num_heads: int,
    head_size: int,
    rotary_size: int,
    interleaved: bool,
    dtype: torch.dtype,
) -> None:
    x = draw(4, num_heads, head_size, dtype=dtype, device=device)
    table, positions = cos_sin_table(rotary_size, device), positions_of(4, device)
    expected = x.clone()
    layers.rope(expected, positions, table, interleaved)
    assert not torch.equal(expected, x)
    rope(x, positions, table, interleaved)
    assert torch.equal(x, expected)


def one_after_the_other(
    qkv: Tensor,
    weights: tuple[Tensor, Tensor] | None,
    table: Tensor,
    positions: Tensor,
    cache: Tensor,
    slots: Tensor,
    interleaved: bool,
) -> Tensor:
    """The queries, by the kernels for the single steps; writes the cache."""
    num_kv_heads, head_size = cache.shape[3:]
    heads = qkv.view(len(qkv), -1, head_size)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    split = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    q, k, v = (part.contiguous() for part in split)
    if weights is not None:
        q, k = (
            rms_norm(x.view(-1, head_size), weight, EPS).view(x.shape)
            for x, weight in zip((q, k), weights, strict=True)
        )
    rope(q, positions, table, interleaved)
    rope(k, positions, table, interleaved)
    write_kv(k, v, cache, slots)
    return q


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_size", "rotary_size", "interleaved"),
    [(4, 2, 64, 64, False), (9, 3, 64, 64, True), (2, 1, 80, 80, False), (20, 10, 32, 8, False)],
)
def test_fused_is_its_parts_to_the_bit(
    device: torch.device,
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    rotary_size: int,
    interleaved: bool,
    has_norm: bool,
    dtype: torch.dtype,
) -> None:
    num_tokens, num_others = 5, 3
    width = (num_heads + 2 * num_kv_heads) * head_size
    # The rows are part of wider ones.
    wide = draw(num_tokens, width + num_others, dtype=dtype, device=device)
    before = wide.clone()
    qkv = wide[:, :width]
    drawn = draw(2, head_size, dtype=dtype, device=device, seed=1)
    weights = (drawn[0], drawn[1]) if has_norm else None
    table, positions = cos_sin_table(rotary_size, device), positions_of(num_tokens, device)
    cache = draw(2, 4, 8, num_kv_heads, head_size, dtype=dtype, device=device, seed=2)
    slots = torch.tensor([3, -1, 30, 9, 8], device=device)

    expected_cache = cache.clone()
    expected_q = one_after_the_other(
        qkv, weights, table, positions, expected_cache, slots, interleaved
    )
    q_weight, k_weight = weights or (None, None)
    qk_norm_rope_write(qkv, q_weight, k_weight, EPS, table, positions, cache, slots, interleaved)
    q_width = num_heads * head_size
    assert torch.equal(qkv[:, :q_width], expected_q.flatten(1))
    assert torch.equal(cache, expected_cache)
    assert torch.equal(wide[:, q_width:], before[:, q_width:]), "the rest is left alone"


def test_fused_does_what_the_reference_does(device: torch.device) -> None:
    qkv = draw(5, 8 * 64, dtype=torch.float32, device=device)
    q_weight, k_weight = draw(2, 64, dtype=torch.float32, device=device, seed=1)
    table, positions = cos_sin_table(64, device), positions_of(5, device)
    cache = torch.full((2, 4, 8, 2, 64), torch.nan, device=device)
    slots = torch.tensor([3, -1, 31, 9, 8], device=device)
    expected_qkv, expected_cache = qkv.clone(), cache.clone()
    rest = EPS, table, positions
    layers.qk_norm_rope_write(expected_qkv, q_weight, k_weight, *rest, expected_cache, slots)
    qk_norm_rope_write(qkv, q_weight, k_weight, *rest, cache, slots)
    q, expected_q = qkv[:, : 4 * 64], expected_qkv[:, : 4 * 64]
    torch.testing.assert_close(q, expected_q, rtol=0, atol=1e-5)
    torch.testing.assert_close(cache, expected_cache, rtol=0, atol=1e-5, equal_nan=True)
    assert cache.isnan().sum() == cache.numel() - 2 * 4 * 2 * 64


def test_blocks_more_than_two_to_the_31_elements_away_are_reached(device: torch.device) -> None:
    qkv = draw(1, 3 * 32, dtype=torch.float16, device=device)
    table, positions = cos_sin_table(32, device), positions_of(1, device)
    # Untouched memory costs nothing on a CPU; blocks lie 2^30 elements apart.
    memory = torch.empty(2**31 + 64, dtype=torch.float16, device=device)
    cache = memory.as_strided((2, 3, 1, 1, 32), (32, 2**30, 32, 32, 1))
    near = torch.zeros(2, 3, 1, 1, 32, dtype=torch.float16, device=device)
    slots = torch.tensor([2], device=device)
    for target in (cache, near):
        qk_norm_rope_write(qkv.clone(), None, None, EPS, table, positions, target, slots)
    assert near[:, 2].any()
    assert torch.equal(cache[:, 2], near[:, 2])


def test_heads_that_do_not_lie_together_are_refused(device: torch.device) -> None:
    table, positions = cos_sin_table(32, device), positions_of(3, device)
    x = torch.zeros(2, 3, 32, device=device).transpose(0, 1)
    with pytest.raises(ValueError, match="x has strides"):
        rope(x, positions, table)
    cache = torch.zeros(2, 4, 2, 8, 32, device=device).transpose(2, 3)
    with pytest.raises(ValueError, match="kv_cache has strides"):
        qk_norm_rope_write(x[0], None, None, EPS, table, positions, cache, positions)


def test_no_tokens_is_no_launch(device: torch.device) -> None:
    table, none = cos_sin_table(32, device), torch.zeros(0, dtype=torch.int64, device=device)
    cache = torch.ones(2, 4, 4, 1, 32, device=device)
    rope(torch.zeros(0, 3, 32, device=device), none, table)
    qkv = torch.zeros(0, 96, device=device)
    qk_norm_rope_write(qkv, None, None, EPS, table, none, cache, none)
    assert torch.equal(cache, torch.ones_like(cache))


def test_the_operators_are_well_formed(device: torch.device) -> None:
    table, positions = cos_sin_table(32, device), positions_of(2, device)
    x = torch.randn(2, 3, 32, device=device)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(rope_op, (x, positions, table), test_utils=tests)
    qkv, cache = torch.randn(2, 96, device=device), torch.zeros(2, 4, 4, 1, 32, device=device)
    slots = torch.tensor([3, -1], device=device)
    arguments = (qkv, None, None, EPS, table, positions, cache, slots)
    torch.library.opcheck(qk_norm_rope_write_op, arguments, test_utils=tests)
