"""The pooled G test: do counts follow given probabilities?

G = 2 sum O ln(O / E) is about chi-square with (cells - 1) degrees of freedom where every expected
count is large. Cells that expect fewer than LEAST_EXPECTED draws are therefore pooled; with 5, the
textbook's number, the test rejects slightly too often.

Source: Sokal and Rohlf, Biometry, chapter on goodness of fit; the limit was measured, see
tests/conformance/statistics.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc, xlogy  # type: ignore[import-untyped]

LEAST_EXPECTED = 20.0
_TOLERANCE = 1e-9


class GTest(NamedTuple):
    p_value: float
    statistic: float
    num_cells: int
    """After pooling. With one cell there is nothing to test, and the p-value is 1."""


def g_test(
    counts: ArrayLike, probabilities: ArrayLike, *, least_expected: float = LEAST_EXPECTED
) -> GTest:
    """Tests counts [cells] against probabilities [cells] of sum 1.

    A count where the probability is 0 gives a p-value of 0. Raises ValueError if the two do not
    fit together.
    """
    observed = np.asarray(counts, np.float64)
    p = np.asarray(probabilities, np.float64)
    if observed.shape != p.shape or observed.ndim != 1:
        raise ValueError(f"counts {observed.shape} and probabilities {p.shape} differ in shape")
    if (p < 0).any() or abs(p.sum() - 1) > _TOLERANCE:
        raise ValueError(f"probabilities sum to {p.sum()}; they must be 0 or more with sum 1")
    if observed[p == 0].any():
        return GTest(0.0, float("inf"), len(p))
    observed, expected = pool(observed, p * observed.sum(), least_expected=least_expected)
    if len(observed) < 2:
        return GTest(1.0, 0.0, len(observed))
    statistic = max(0.0, 2 * float(xlogy(observed, observed / expected).sum()))
    return GTest(float(chdtrc(len(observed) - 1, statistic)), statistic, len(observed))


def pool(
    observed: NDArray[np.float64], expected: NDArray[np.float64], *, least_expected: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Merges the cells that expect too little into one, and that into the smallest of the others
    if it still does. The choice depends on `expected` alone."""
    large = expected >= least_expected
    rest = float(expected[~large].sum())
    cells = [observed[large], expected[large]]
    if rest == 0:
        return cells[0], cells[1]
    small = [observed[~large].sum(), rest]
    if rest >= least_expected or not large.any():
        return np.append(cells[0], small[0]), np.append(cells[1], small[1])
    smallest = int(cells[1].argmin())
    for cell, more in zip(cells, small, strict=True):
        cell[smallest] += more
    return cells[0], cells[1]
