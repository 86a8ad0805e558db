"""The three-way rule accepts rounding, and nothing that is more than rounding."""

import numpy as np
import pytest

from pagetwin.conformance.numerics.three_way import compare

ROUNDOFF = 2.0**-24
ERRORS = np.random.default_rng(0).normal(size=5000) * 1e-5


def is_within(engine: np.ndarray, reference: np.ndarray = ERRORS) -> bool:
    return all(row.is_within for row in compare(engine, reference, roundoff=ROUNDOFF))


def test_errors_like_the_reference_s_pass_and_larger_ones_do_not() -> None:
    other = np.random.default_rng(1).normal(size=5000) * 1e-5
    assert is_within(other)
    assert not is_within(3 * other)


def test_one_large_error_among_thousands_fails() -> None:
    engine = ERRORS.copy()
    engine[7] = 1e-3
    rows = compare(engine, ERRORS, roundoff=ROUNDOFF)
    assert [row.is_within for row in rows] == [True, True, False]


def test_a_reference_without_errors_still_leaves_a_few_roundings() -> None:
    exact = np.zeros(10)
    assert is_within(np.full(10, 7 * ROUNDOFF), exact)
    assert not is_within(np.full(10, 9 * ROUNDOFF), exact)


def test_an_engine_that_gives_nan_fails() -> None:
    engine = ERRORS.copy()
    engine[0] = np.nan
    assert not is_within(engine)


def test_a_reference_that_gives_nan_cannot_judge() -> None:
    with pytest.raises(ValueError, match="cannot judge"):
        compare(ERRORS, np.array([np.nan]), roundoff=ROUNDOFF)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="no errors"):
        compare(np.array([]), ERRORS, roundoff=ROUNDOFF)
