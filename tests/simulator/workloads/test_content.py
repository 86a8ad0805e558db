"""Prompts share what their segments share, and nothing else."""

from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.token_source import NUM_SCRIPT_TOKENS
from pagetwin.simulator.workloads.content import REST, Kind, Segment, SystemPrompts, tokens_of

SEGMENTS = st.lists(
    st.builds(Segment, st.sampled_from(Kind), st.sampled_from([0, 1, 2, 2**60]), st.integers(1, 9)),
    max_size=4,
)


def common_prefix(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@given(SEGMENTS, SEGMENTS, SEGMENTS)
def test_two_prompts_share_their_common_segments_and_the_start_of_a_cut_one(
    shared: list[Segment], one: list[Segment], other: list[Segment]
) -> None:
    one, other = [*shared, *one], [*shared, *other]
    expected = 0
    for mine, yours in zip(one, other, strict=False):
        if mine[:2] != yours[:2]:
            break
        expected += min(mine.num_tokens, yours.num_tokens)
        if mine.num_tokens != yours.num_tokens:
            break
    first, second = tokens_of(one), tokens_of(other)
    assert len(first) == sum(segment.num_tokens for segment in one)
    assert common_prefix(first, second) == expected


def test_tokens_stand_apart_from_those_that_a_step_samples_and_fit_in_64_bits() -> None:
    tokens = tokens_of([Segment(Kind.HASHED, 2**60, 5), Segment(Kind.OWN, 0, 1)])
    assert NUM_SCRIPT_TOKENS <= REST <= min(tokens)
    assert max(tokens) < 2**63


def test_families_are_drawn_by_zipfs_law() -> None:
    system = SystemPrompts(num_tokens=7, num_families=4, skew=1.0)
    draws = system.draws(np.random.Generator(np.random.Philox(1)))
    names = [next(draws).name for _ in range(20000)]
    shares = np.bincount(names, minlength=4) / len(names)
    expected = np.array([1, 1 / 2, 1 / 3, 1 / 4])
    # Three and a half standard deviations of a share of 20,000 draws are below 0.0125.
    assert shares == pytest.approx(expected / expected.sum(), abs=0.0125)


@pytest.mark.parametrize(
    "wrong", [{"num_tokens": 0}, {"num_families": 0}, {"skew": -1.0}, {"skew": float("nan")}]
)
def test_system_prompts_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="is outside"):
        SystemPrompts(**{"num_tokens": 4, **wrong})  # type: ignore[arg-type]
