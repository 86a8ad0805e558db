"""The references against simpler words for the same: loops, complex numbers, single steps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.kernels import reference_layers
from pagetwin.kernels.reference import dense_attention, write_kv
from pagetwin.kernels.trial import make_sequence


@given(
    num_keys=st.integers(1, 6),
    data=st.data(),
    window=st.integers(0, 7),
    soft_cap=st.sampled_from([0.0, 2.0]),
)
def test_attention_is_a_weighted_mean_of_the_visible_values(
    num_keys: int, data: st.DataObject, window: int, soft_cap: float
) -> None:
    num_rows = data.draw(st.integers(1, num_keys))
    q, k, v = make_sequence(num_keys, num_heads=4, num_kv_heads=2, head_size=3)
    result = dense_attention(
        q[num_keys - num_rows :], k, v, scale=0.5, sliding_window=window, soft_cap=soft_cap
    )
    for row in range(num_rows):
        position = num_keys - num_rows + row
        visible = [j for j in range(position + 1) if not window or j > position - window]
        for head in range(4):
            weights = []
            for j in visible:
                score = 0.5 * float(q[position, head].double() @ k[j, head // 2].double())
                weights.append(
                    math.exp(soft_cap * math.tanh(score / soft_cap) if soft_cap else score)
                )
            values = v[visible, head // 2].double()
            mean = (torch.tensor(weights, dtype=torch.float64) @ values / sum(weights)).tolist()
            assert result.out[row, head].tolist() == pytest.approx(mean, rel=1e-12, abs=1e-14)
            assert float(result.lse[row, head]) == pytest.approx(math.log(sum(weights)), abs=1e-12)
            assert int(result.num_keys[row, head]) == len(visible)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bound_is_narrow_enough_to_show_one_wrong_key(dtype: torch.dtype) -> None:
    q, k, v = make_sequence(300, num_heads=2, num_kv_heads=1, head_size=64, dtype=dtype)
    exact = dense_attention(q[-1:], k, v, scale=0.125)
    bound = exact.error_bound(accumulate=torch.float32, store=dtype, head_size=64)
    for position in (0, 150, 299):
        wrong = v.clone()
        wrong[position] = v[position - 1]
        other = dense_attention(q[-1:], k, wrong, scale=0.125)
        assert ((other.out - exact.out).abs() / bound).max() > 1


def test_slot_minus_one_writes_nothing() -> None:
    cache = torch.zeros(2, 2, 4, 1, 2)
    k = torch.ones(3, 1, 2)
    write_kv(k, 2 * k, cache, torch.tensor([-1, 6, -1]))
    assert cache.nonzero().tolist() == [
        [0, 1, 2, 0, 0],
        [0, 1, 2, 0, 1],
        [1, 1, 2, 0, 0],
        [1, 1, 2, 0, 1],
    ]


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_multiplies_pairs_of_channels_as_complex_numbers(interleaved: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 10, dtype=torch.float64, generator=generator)
    angles = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    positions = torch.tensor([6, 0, 2, 2])

    def as_complex(heads: torch.Tensor) -> torch.Tensor:
        pairs = heads[..., :6].reshape(4, 3, *((3, 2) if interleaved else (2, 3)))
        return torch.view_as_complex((pairs if interleaved else pairs.mT).contiguous())

    turned = x.clone()
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    reference_layers.rope(turned, positions, table, interleaved)
    turns = torch.polar(torch.ones_like(angles), angles)[positions][:, None]
    torch.testing.assert_close(as_complex(turned), as_complex(x) * turns)
    assert torch.equal(turned[..., 6:], x[..., 6:])


def test_heads_are_normalised_then_turned_then_written() -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 4 * 6, generator=generator)
    q, k, v = qkv.clone().view(3, 4, 6).split((2, 1, 1), dim=1)  # type: ignore[no-untyped-call]
    weights = torch.randn(2, 6, generator=generator)
    table = torch.randn(9, 4, generator=generator)
    positions = torch.tensor([8, 0, 3])
    cache = torch.zeros(2, 3, 2, 1, 6)
    slots = torch.tensor([5, -1, 2])
    reference_layers.qk_norm_rope_write(
        qkv, weights[0], weights[1], 1e-6, table, positions, cache, slots
    )
    q, k = (
        reference_layers.rms_norm(x, weight, 1e-6)
        for x, weight in zip((q, k), weights, strict=True)
    )
    for x in (q, k):
        reference_layers.rope(x, positions, table)
    assert torch.equal(qkv.view(3, 4, 6)[:, :2], q)
    assert torch.equal(cache[:, 2, 1], torch.stack((k[0], v[0])))
    assert torch.equal(cache[:, 1, 0], torch.stack((k[2], v[2])))
    assert cache.count_nonzero() == 4 * 6
