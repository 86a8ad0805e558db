"""The scaling law tells how an accumulator rounds."""

import numpy as np
import pytest

from pagetwin.conformance.numerics.scaling import SLOPE_LIMIT, TRUNCATING_SLOPE_LIMIT, fit

LENGTHS = [2**n for n in range(6, 12)]


def errors_of_sums(step: str) -> list[float]:
    """Largest relative error of sums of positive numbers, rounded to 16 bits term by term."""
    random = np.random.default_rng(0)
    errors = []
    for length in LENGTHS:
        terms = random.uniform(0.5, 1.0, (200, length))
        sums = np.zeros(200)
        for column in terms.T:
            sums += column
            scale = 2.0 ** (np.floor(np.log2(sums)) - 15)
            sums = (np.round if step == "nearest" else np.floor)(sums / scale) * scale
        errors.append(float(np.abs(sums / terms.sum(axis=1) - 1).max()))
    return errors


def test_rounding_to_nearest_stays_below_the_limit_and_truncation_does_not() -> None:
    assert fit(LENGTHS, errors_of_sums("nearest")).slope <= SLOPE_LIMIT
    truncated = fit(LENGTHS, errors_of_sums("down")).slope
    assert SLOPE_LIMIT < truncated <= TRUNCATING_SLOPE_LIMIT


def test_a_power_law_is_recovered() -> None:
    law = fit(LENGTHS, [3e-7 * n**0.4 for n in LENGTHS])
    assert law.slope == pytest.approx(0.4)
    assert law.intercept == pytest.approx(np.log2(3e-7))


@pytest.mark.parametrize(
    ("lengths", "errors"), [([1, 2], [1.0, 2.0]), ([1, 2, 4], [1.0, 0.0, 1.0]), ([1, 2, 4], [1.0])]
)
def test_too_little_to_fit_is_refused(lengths: list[int], errors: list[float]) -> None:
    with pytest.raises(ValueError, match="errors"):
        fit(lengths, errors)
