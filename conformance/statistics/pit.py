"""The randomised probability integral transform: draws of many distributions become one test.

Order the tokens of a position by falling probability. A token x drawn from p becomes
U = F(x-) + V p(x), where F(x-) is the mass before x and V is the checker's own uniform number. If x
was drawn from p, U is uniform on (0, 1) whatever p is, and independent of all others; so positions,
requests and temperatures go into one histogram. A wrong temperature tilts it, a leaking top-p puts
mass at its end, a wrong renormalisation makes a step.

Source: Rosenblatt, Remarks on a multivariate transformation (1952); randomised for discrete laws
as in Brockwell, Universal residuals (2007).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

NUM_BINS = 16
PAIR_BINS = 8
"""Each way: pairs fall into PAIR_BINS ** 2 cells."""


def mass_before(probabilities: Floats) -> Floats:
    """For each token of each row [..., vocab] the mass of the tokens before it: the likelier ones,
    and of equally likely ones those with a lower id."""
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=-1)
    before = np.empty_like(probabilities)
    np.put_along_axis(before, order, np.cumsum(ordered, axis=-1) - ordered, axis=-1)
    return before


def randomised_pit(probabilities: Floats, tokens: NDArray[np.int64], uniforms: Floats) -> Floats:
    """U of each row: probabilities [rows, vocab], tokens [rows], uniforms [rows] in [0, 1)."""
    rows = np.arange(len(tokens))
    before = mass_before(probabilities)[rows, tokens]
    return below_one(before + uniforms * probabilities[rows, tokens])


def below_one(values: Floats) -> Floats:
    """Rounding may take a U to 1, which no bin holds."""
    return np.asarray(np.clip(values, 0.0, np.nextafter(1.0, 0.0)))


def bin_counts(values: Floats, num_bins: int = NUM_BINS) -> Counts:
    """Counts of values in [0, 1) over equal bins."""
    return np.bincount((values * num_bins).astype(np.int64), minlength=num_bins)


def pair_counts(pairs: Floats, num_bins: int = PAIR_BINS) -> Counts:
    """Counts of pairs [n, 2] over a square grid, as one row of num_bins ** 2 cells."""
    cells = (pairs * num_bins).astype(np.int64)
    return np.bincount(cells[:, 0] * num_bins + cells[:, 1], minlength=num_bins**2)


def lagged_pairs(values: Floats, lag: int) -> Floats:
    """Pairs (U_t, U_{t+lag}) that share no value, so that under the null they are independent.

    Pairs that overlap are not: their counts are no multinomial sample (Good, 1953).
    """
    starts = [t for t in range(len(values) - lag) if t % (2 * lag) < lag]
    index = np.array(starts, np.int64)
    return np.stack([values[index], values[index + lag]], axis=1)


def across_pairs(columns: Sequence[Floats]) -> Floats:
    """Pairs of two requests at the same output position; each request is in one pair of them.

    Noise that requests share shows where they draw from like distributions, so compare requests
    with one prompt: over unlike ones the order of the tokens, and with it U, differs too much.
    """
    pairs = [
        np.stack([first[: len(second)], second[: len(first)]], axis=1)
        for first, second in zip(columns[::2], columns[1::2], strict=False)
    ]
    return np.concatenate(pairs) if pairs else np.empty((0, 2))
