"""The G test's error rate, its power, and how it pools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import power_divergence  # type: ignore[import-untyped]

from pagetwin.conformance.statistics.goodness_of_fit import LEAST_EXPECTED, g_test, pool
from pagetwin.conformance.statistics.rates import is_at_least, is_at_most

WEIGHTS = np.exp(np.random.default_rng(2).normal(size=200) * 2)
P = WEIGHTS / WEIGHTS.sum()


@pytest.mark.parametrize("alpha", [0.05, 1e-3])
def test_false_alarms_with_pooling_are_near_the_level(alpha: float) -> None:
    """A chi-square is an approximation: a tenth more than the level is granted to it."""
    random, runs = np.random.default_rng(3), 20_000
    alarms = sum(g_test(row, P).p_value <= alpha for row in random.multinomial(2000, P, runs))
    assert is_at_most(alarms, runs, 1.1 * alpha)
    assert is_at_least(alarms, runs, 0.7 * alpha)


def test_a_small_change_of_all_probabilities_is_found() -> None:
    changed = P**1.05 / (P**1.05).sum()
    rows = np.random.default_rng(4).multinomial(40_000, changed, 50)
    assert is_at_least(sum(g_test(row, P).p_value < 1e-6 for row in rows), 50, 0.9)


def test_without_pooling_it_is_scipys() -> None:
    counts, p = [60, 90, 50], np.array([0.25, 0.5, 0.25])
    theirs = power_divergence(counts, p * 200, lambda_="log-likelihood")
    ours = g_test(counts, p)
    assert ours.statistic == pytest.approx(theirs.statistic)
    assert ours.p_value == pytest.approx(theirs.pvalue)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20), st.randoms())
def test_pooling_keeps_totals_and_leaves_no_small_cell(
    expected: list[float], random: object
) -> None:
    wanted = np.array(expected)
    observed = np.round(wanted)
    cells = pool(observed.copy(), wanted.copy(), least_expected=LEAST_EXPECTED)
    assert cells[0].sum() == observed.sum()
    assert cells[1].sum() == pytest.approx(wanted.sum())
    assert len(cells[1]) == 1 or (cells[1] >= LEAST_EXPECTED).all()


def test_a_draw_of_an_impossible_token_is_a_failure() -> None:
    assert g_test([999, 0, 1], [0.5, 0.5, 0.0]).p_value == 0


def test_one_cell_tests_nothing() -> None:
    assert g_test([5, 5], [0.5, 0.5]) == (1.0, 0.0, 1)


@pytest.mark.parametrize("p", [[0.5, 0.6], [1.5, -0.5], [1.0]])
def test_what_is_no_distribution_over_the_cells_is_refused(p: list[float]) -> None:
    with pytest.raises(ValueError, match=r"probabilities|shape"):
        g_test([1, 1], p)
