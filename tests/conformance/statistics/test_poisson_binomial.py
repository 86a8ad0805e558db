"""Tails of sums of unlike events, against enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import bdtrc  # type: ignore[import-untyped]

from pagetwin.conformance.statistics.poisson_binomial import at_least, at_most, flip_probabilities
from pagetwin.conformance.statistics.rates import is_at_most


@given(p=st.lists(st.floats(0, 1), max_size=7), count=st.integers(-1, 8))
def test_tails_are_those_of_all_outcomes(p: list[float], count: int) -> None:
    upper = lower = 0.0
    for outcome in itertools.product((0, 1), repeat=len(p)):
        chance = math.prod(q if x else 1 - q for q, x in zip(p, outcome, strict=True))
        upper += chance * (sum(outcome) >= count)
        lower += chance * (sum(outcome) <= count)
    assert at_least(count, p) == pytest.approx(upper, abs=1e-12)
    assert at_most(count, p) == pytest.approx(lower, abs=1e-12)


def test_equal_events_are_binomial_far_into_the_tail() -> None:
    assert at_least(40, [0.01] * 500) == pytest.approx(float(bdtrc(39, 500, 0.01)), rel=1e-9)
    assert at_least(40, [0.01] * 500) < 1e-20


def test_false_alarms_of_the_flip_count_stay_below_alpha() -> None:
    random, runs, alpha = np.random.default_rng(1), 400, 0.02
    margins = random.exponential(1.0, 300)
    p = flip_probabilities(margins, 0.05)
    flips = (random.random((runs, 300)) < p).sum(axis=1)
    alarms = sum(at_least(int(f), p) <= alpha for f in flips)
    assert is_at_most(alarms, runs, alpha)


def test_errors_three_times_as_large_as_they_should_be_are_found() -> None:
    """Each flip is a near tie; that there are so many is what shows it."""
    random = np.random.default_rng(2)
    margins = random.exponential(1.0, 2000)
    noise = random.normal(size=(2, 2000)) * 0.15
    flips = int((margins + noise[0] - noise[1] < 0).sum())
    assert at_least(flips, flip_probabilities(margins, 0.05)) < 1e-5
    assert at_least(flips, flip_probabilities(margins, 0.15)) > 1e-3


def test_a_tie_flips_half_of_the_time() -> None:
    assert flip_probabilities([0.0], 1.0) == pytest.approx([0.5])


@pytest.mark.parametrize("p", [[1.1], [-0.1], [[0.5]]])
def test_what_is_no_probability_is_refused(p: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        at_least(1, p)
