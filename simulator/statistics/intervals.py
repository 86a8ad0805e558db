"""Intervals for what was simulated: over several seeds, or over batches of one run."""

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from pagetwin.engine.errors import ConfigError

Floats = npt.NDArray[np.float64]

NUM_BATCHES = 20
"""Few enough that batches are nearly independent, enough for a narrow t quantile (Law, Simulation
Modeling and Analysis, 9.5.3 recommends 10 to 30)."""


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate, and between what it lies with the stated confidence; None: unknown."""

    value: float
    low: float | None = None
    high: float | None = None
    confidence: float
    num_samples: int
    """Independent values that it was made from: seeds, or batches."""

    def is_below(self, limit: float) -> bool | None:
        """Whether all of the interval is at or below the limit; None if the limit is inside."""
        if self.low is None or self.high is None:
            return None
        if self.high <= limit:
            return True
        return False if self.low > limit else None


def replication_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Of the mean over independent runs, one value each (Student's t).

    One run alone has no interval. Raises ConfigError on no value, or a confidence outside (0, 1).
    """
    _check_confidence(confidence)
    if not values:
        raise ConfigError("no run has a value to make an interval of; simulate at least one seed")
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Interval(value=mean, confidence=confidence, num_samples=1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = t_quantile(confidence, count - 1) * deviation / math.sqrt(count)
    return Interval(
        value=mean, low=mean - half, high=mean + half, confidence=confidence, num_samples=count
    )


def batch_interval(
    values: npt.ArrayLike,
    statistic: Callable[[Floats], float],
    *,
    num_batches: int = NUM_BATCHES,
    confidence: float = 0.95,
) -> Interval:
    """Of a statistic of one long run (nonoverlapping batch means, Schmeiser 1982).

    `values` are in the order of time. The estimate is of all of them, the interval from how much
    the statistic differs between batches; too few values for that have no interval.
    """
    _check_confidence(confidence)
    series = np.asarray(values, np.float64)
    if not len(series):
        raise ConfigError("no value to make an interval of; the run ended no request")
    estimate = statistic(series)
    if len(series) < 10 * num_batches:
        return Interval(value=estimate, confidence=confidence, num_samples=1)
    batches = [statistic(batch) for batch in np.array_split(series, num_batches)]
    spread = replication_interval(batches, confidence)
    assert spread.high is not None
    half = spread.high - spread.value
    return Interval(
        value=estimate,
        low=estimate - half,
        high=estimate + half,
        confidence=confidence,
        num_samples=num_batches,
    )


def t_quantile(confidence: float, degrees: int) -> float:
    """Between minus and plus this lies Student's t with that probability."""
    # Here, so that what needs no interval starts without scipy.
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence!r} is outside (0, 1); 0.95 is usual")
