"""The torch backend against dense attention in float64, over a cache full of NaN."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagetwin.conformance.numerics.attention import used_of_bound
from pagetwin.engine.attention.tiles import MAX_CHUNK_ROWS, TILE
from pagetwin.kernels.trial import Span, make_sequence

Attend = Callable[..., Tensor]

fixed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""`attend` keeps nothing between examples."""


@st.composite
def spans_of_one_model(draw: st.DrawFn, max_length: int = 2 * TILE + 40) -> list[Span]:
    """Sequences of one random shape; shrinks to one row of one sequence of one token."""
    num_kv_heads = draw(st.integers(1, 3))
    heads: dict[str, Any] = {
        "num_kv_heads": num_kv_heads,
        "num_heads": num_kv_heads * draw(st.sampled_from([1, 2, 3, 4, 8])),
        "head_size": draw(st.sampled_from([32, 40, 64, 80, 96, 128, 256])),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
    }
    edges = st.sampled_from([1, 2, 16, 17, TILE, TILE + 1, 2 * TILE])
    spans = []
    for seed in range(draw(st.integers(1, 4))):
        length = draw(edges | st.integers(1, max_length))
        num_rows = draw(st.just(1) | st.just(length) | st.integers(1, length))
        spans.append(Span(make_sequence(length, seed=seed, **heads), length - num_rows, length))
    return spans


def assert_within_bound(
    out: Tensor, spans: list[Span], *, scale: float, sliding_window: int = 0, soft_cap: float = 0.0
) -> None:
    used = used_of_bound(out, spans, scale=scale, sliding_window=sliding_window, soft_cap=soft_cap)
    assert used <= 1, f"error is {used} of its bound"


@fixed
@given(
    spans=spans_of_one_model(),
    block_size=st.sampled_from([1, 8, 16, 24, 64, 256]),
    sliding_window=st.sampled_from([0, 1, 5, 16, TILE, TILE + 3]),
    placement_seed=st.integers(0, 9),
)
def test_output_is_exact_attention_within_its_error_bound(
    attend: Attend,
    spans: list[Span],
    block_size: int,
    sliding_window: int,
    placement_seed: int,
) -> None:
    scale = spans[0].sequence.q.shape[2] ** -0.5
    rows = {end - start == 1 for _, start, end in spans}
    event("mixed" if len(rows) == 2 else "decode" if True in rows else "chunks")
    out = attend(
        spans,
        block_size=block_size,
        scale=scale,
        sliding_window=sliding_window,
        placement_seed=placement_seed,
    )
    assert_within_bound(out, spans, scale=scale, sliding_window=sliding_window)


@fixed
@given(spans=spans_of_one_model(), block_size=st.sampled_from([1, 16, 24]))
def test_garbage_and_placement_do_not_change_a_bit(
    attend: Attend, spans: list[Span], block_size: int
) -> None:
    window = 20
    first = attend(spans, block_size=block_size, sliding_window=window, poison=torch.nan)
    assert first.isfinite().all()
    for poison, placement_seed in ((0.0, 0), (torch.inf, 1), (-torch.inf, 2), (3e4, 3)):
        again = attend(
            spans,
            block_size=block_size,
            sliding_window=window,
            poison=poison,
            placement_seed=placement_seed,
        )
        assert torch.equal(again, first)


@fixed
@given(spans=spans_of_one_model(max_length=60), soft_cap=st.sampled_from([1.0, 30.0]))
def test_soft_cap_is_applied_to_scores(attend: Attend, spans: list[Span], soft_cap: float) -> None:
    out = attend(spans, soft_cap=soft_cap)
    assert_within_bound(out, spans, scale=0.125, soft_cap=soft_cap)


def test_a_long_chunk_is_computed_in_pieces_within_bound(attend: Attend) -> None:
    length = 2 * MAX_CHUNK_ROWS + 7
    sequence = make_sequence(length, num_heads=4, num_kv_heads=2, head_size=64)
    spans = [Span(sequence, 0, length)]
    assert_within_bound(attend(spans), spans, scale=0.125)


@pytest.mark.parametrize("window", [0, *range(TILE - 1, TILE + 4)])
def test_masks_are_exact_where_chunk_window_and_tile_edges_meet(
    attend: Attend, window: int
) -> None:
    """Each mask that is left out because a tile is wholly visible could be one key off."""
    sequence = make_sequence(2 * TILE + 9, num_heads=1, num_kv_heads=1, head_size=32)
    for start in range(TILE - 3, TILE + 2):
        for end in (*range(start + 2, start + 6), start + TILE + 2):
            spans = [Span(sequence, start, end)]
            out = attend(spans, sliding_window=window)
            assert_within_bound(out, spans, scale=0.125, sliding_window=window)


@pytest.mark.parametrize("num_rows", [1, 9])
@pytest.mark.parametrize("window", [1, 16, 130])
def test_a_row_sees_exactly_its_window(attend: Attend, window: int, num_rows: int) -> None:
    length = 2 * TILE
    sequence = make_sequence(length, num_heads=2, num_kv_heads=1, head_size=32)
    span = Span(sequence, length - num_rows, length)
    before = attend([span], sliding_window=window)
    for row in range(num_rows):
        position = span.start + row
        for distance, seen in ((0, True), (window - 1, True), (window, False), (-1, False)):
            if not 0 <= position - distance < length:
                continue
            k = sequence.k.clone()
            k[position - distance] += 1
            v = sequence.v.clone()
            v[position - distance] += 1
            after = attend(
                [span._replace(sequence=sequence._replace(k=k, v=v))], sliding_window=window
            )
            assert torch.equal(after[row], before[row]) is not seen


def test_a_kv_head_influences_only_its_group(attend: Attend) -> None:
    sequence = make_sequence(40, num_heads=6, num_kv_heads=3, head_size=32)
    k = sequence.k.clone()
    k[:, 1] += 1
    for start in (0, 39):
        before = attend([Span(sequence, start, 40)])
        after = attend([Span(sequence._replace(k=k), start, 40)])
        changed = (after != before).any(-1).any(0).tolist()
        assert changed == [False, False, True, True, False, False]


@pytest.mark.parametrize("start", [0, 29])
def test_scores_of_a_hundred_thousand_stay_finite(attend: Attend, start: int) -> None:
    sequence = make_sequence(30, num_heads=2, num_kv_heads=1, head_size=64)
    out = attend([Span(sequence, start, 30)], scale=1e4)
    assert out.isfinite().all()
    assert (sequence.q @ sequence.k.mT).abs().max() * 1e4 > 1e5
