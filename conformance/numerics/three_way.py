"""The three-way rule: an engine and a reference of its own precision, each against exact values.

Two low-precision results are never compared with each other: both may be right and differ, and both
may be wrong and agree. The engine's errors may be `ratio` times the reference's, quantile by
quantile, above a floor of a few roundings.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RATIOS: Mapping[float, float] = {0.5: 2.0, 0.99: 2.0, 1.0: 3.0}
"""By quantile of the absolute errors, how many times the reference's the engine's may be."""
ENGINE_TO_ORACLE = 2.0
"""How much larger than a reference's error, in the same dtype, an engine's may be where single
values are judged."""
FLOOR_ROUNDINGS = 4.0


class QuantileRow(NamedTuple):
    quantile: float
    engine: float
    """The engine's error at this quantile."""
    reference: float
    limit: float

    @property
    def is_within(self) -> bool:
        return self.engine <= self.limit

    @property
    def used(self) -> float:
        """Share of the limit that is used; above 1 is a failure."""
        return self.engine / self.limit


def compare(
    engine_errors: ArrayLike,
    reference_errors: ArrayLike,
    *,
    roundoff: float,
    ratios: Mapping[float, float] = RATIOS,
) -> tuple[QuantileRow, ...]:
    """One row for each quantile. Errors are differences to exact values, any shapes; `roundoff` is
    that of the dtype (eps / 2). Raises ValueError if there is nothing to compare, or an error that
    is no number.
    """
    mine, other = (np.abs(np.ravel(errors)) for errors in (engine_errors, reference_errors))
    if not len(mine) or not len(other):
        raise ValueError("there are no errors to compare")
    if not np.isfinite(other).all():
        raise ValueError("the reference's errors are not finite; it cannot judge this model")
    mine = np.where(np.isnan(mine), np.inf, mine)
    floor = 2 * FLOOR_ROUNDINGS * roundoff
    return tuple(
        QuantileRow(quantile, _quantile(mine, quantile), theirs, ratio * theirs + floor)
        for quantile, ratio in ratios.items()
        for theirs in [_quantile(other, quantile)]
    )


def _quantile(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], quantile: float) -> float:
    """An observed value, never one in between: infinities may be among them."""
    return float(np.quantile(values, quantile, method="lower"))
