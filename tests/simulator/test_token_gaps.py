"""Gaps between tokens are counted in buckets, however many steps are counted at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.simulator.token_gaps import WIDTH, TokenGaps, bucket_of, merged, middle_of


@given(st.integers(1, 10**15))
def test_a_bucket_stands_for_its_gaps(ticks: int) -> None:
    assert middle_of(bucket_of(ticks)) == pytest.approx(ticks, rel=WIDTH)


@given(
    first=st.integers(10**6, 10**12),
    growth=st.integers(0, 10**9),
    num_steps=st.integers(1, 400),
    num_rows=st.integers(1, 3),
)
def test_steps_at_once_are_counted_as_one_by_one(
    first: int, growth: int, num_steps: int, num_rows: int
) -> None:
    names = [f"r{n}/0" for n in range(num_rows)]
    at_once, one_by_one = TokenGaps(), TokenGaps()
    for name in names:
        at_once.token(name, 0)
        one_by_one.token(name, 0)
    now = 0
    for step in range(num_steps):
        now += first + step * growth
        for name in names:
            one_by_one.token(name, now)
    at_once.steps(names, num_steps, now=now, duration=now, first=first, growth=growth)
    # A gap on the very edge of a bucket may count to either side.
    assert sum(at_once.counts.values()) == num_steps * num_rows
    edges = set(at_once.counts) | set(one_by_one.counts)
    moved = sum(abs(at_once.counts.get(b, 0) - one_by_one.counts.get(b, 0)) for b in edges)
    assert moved <= 2 * num_rows * len(edges)
    if growth > first * WIDTH:
        assert len(edges) > 1 or num_steps == 1


def test_a_sequence_that_sat_out_has_one_long_gap_and_a_new_one_none() -> None:
    gaps = TokenGaps()
    gaps.token("a/0", 100)
    gaps.token("b/0", 1000)
    gaps.steps(["a/0", "b/0"], 3, now=1030, duration=30, first=10, growth=0)
    counts = {bucket: count for bucket, count in gaps.counts.items() if count}
    assert counts == {bucket_of(10): 5, bucket_of(910): 1}
    gaps.forget("a/0")
    gaps.token("a/0", 5000)
    assert merged([gaps, gaps]) == {b: 2 * c for b, c in gaps.counts.items()}
    assert sum(gaps.counts.values()) == 6
