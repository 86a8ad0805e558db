"""How errors grow with the context: the law that a sum of n products follows.

Rounding to nearest makes errors grow with the square root of the number of terms at most, and
truncating accumulators linearly. The slope of log error over log length tells the two apart, and
an accumulator of too low a precision moves the line as a whole.

Source: Higham and Mary, A new approach to probabilistic rounding error analysis (SISC 2019).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SLOPE_LIMIT = 0.5 + 0.15
"""For accumulators that round to nearest; 0.15 is for the scatter of a few lengths."""
TRUNCATING_SLOPE_LIMIT = 1.0 + 0.15


class ScalingLaw(NamedTuple):
    """log2(error) = intercept + slope * log2(length)."""

    slope: float
    intercept: float


def fit(lengths: Sequence[int], errors: Sequence[float]) -> ScalingLaw:
    """Least squares over at least three lengths; errors [lengths] are positive.

    Raises ValueError where there is no line to fit.
    """
    if len(set(lengths)) < 3 or len(lengths) != len(errors):
        raise ValueError(
            f"{len(lengths)} lengths and {len(errors)} errors; three of each are least"
        )
    if not all(math.isfinite(error) and error > 0 for error in errors):
        raise ValueError(f"errors={list(errors)} are not all positive and finite")
    slope, intercept = np.polyfit(np.log2(lengths), np.log2(errors), 1)
    return ScalingLaw(float(slope), float(intercept))
