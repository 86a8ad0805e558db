"""Decides when open-loop requests arrive: whatever the servers do, the next one comes."""

import math
from collections.abc import Iterator
from itertools import accumulate, repeat

import msgspec
import numpy as np

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.workloads.draws import Purpose, generator, one_by_one


class AtOnce(msgspec.Struct, frozen=True, tag="offline"):
    """All at time 0, as a batch job submits them."""

    def times(self, seed: int) -> Iterator[float]:
        """Endless arrival times in seconds, in order."""
        return repeat(0.0)


class Constant(msgspec.Struct, frozen=True, tag="constant"):
    """One every 1 / rate seconds."""

    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def times(self, seed: int) -> Iterator[float]:
        """Endless arrival times in seconds, in order."""
        number = 0
        while True:
            yield number / self.rate
            number += 1


class Poisson(msgspec.Struct, frozen=True, tag="poisson"):
    """Independent arrivals: exponential gaps of mean 1 / rate seconds."""

    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def times(self, seed: int) -> Iterator[float]:
        """Endless arrival times in seconds, in order."""
        # Gaps of mean 1 are scaled, so that two rates of one seed are one pattern, stretched.
        gaps = one_by_one(generator(seed, Purpose.ARRIVALS).standard_exponential)
        return accumulate(gap / self.rate for gap in gaps)


class Gamma(msgspec.Struct, frozen=True, tag="gamma"):
    """Gamma gaps of mean 1 / rate seconds: bursty for cv above 1, regular below."""

    rate: float
    cv: float
    """Standard deviation of the gaps over their mean; 1 is Poisson."""

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if not (math.isfinite(self.cv) and 0.01 <= self.cv <= 100):
            raise ConfigError(
                f"cv={self.cv!r}, the variation of gaps, is outside 0.01..100; use 1 for Poisson, "
                "more for bursts, `constant` for none"
            )

    def times(self, seed: int) -> Iterator[float]:
        """Endless arrival times in seconds, in order."""
        random, shape = generator(seed, Purpose.ARRIVALS), 1 / self.cv**2
        gaps = one_by_one(lambda count: random.standard_gamma(shape, count))
        return accumulate(gap / (shape * self.rate) for gap in gaps)


class Diurnal(msgspec.Struct, frozen=True, tag="diurnal"):
    """Poisson whose rate swings as a sine around its mean, rising at time 0."""

    rate: float
    """Mean, in requests a second."""
    swing: float = 0.5
    """Share of the mean by which the rate goes up and down, 0 to 1."""
    period_s: float = 86400.0

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if not 0 <= self.swing <= 1:
            raise ConfigError(f"swing={self.swing!r} is outside 0..1; 0.5 is half of the mean rate")
        if not (math.isfinite(self.period_s) and self.period_s > 0):
            raise ConfigError(f"period={self.period_s!r} s is not a positive time; a day is 86400")

    def times(self, seed: int) -> Iterator[float]:
        """Endless arrival times in seconds, in order: a Poisson process at the peak's rate, thinned
        (Lewis and Shedler, 1979)."""
        peak = self.rate * (1 + self.swing)
        gaps = one_by_one(generator(seed, Purpose.ARRIVALS).standard_exponential)
        chances = one_by_one(generator(seed, Purpose.THINNING).random)
        time = 0.0
        for gap, chance in zip(gaps, chances, strict=True):
            time += gap / peak
            if chance * peak < self.rate_at(time):
                yield time

    def rate_at(self, time_s: float) -> float:
        """Requests a second at that time."""
        return self.rate * (1 + self.swing * math.sin(2 * math.pi * time_s / self.period_s))


ArrivalTimes = AtOnce | Constant | Poisson | Gamma | Diurnal


def _check_rate(rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise ConfigError(f"rate={rate!r} is not a positive number of requests a second")


def think_times(random: np.random.Generator, mean_s: float) -> Iterator[float]:
    """Endless exponential pauses of a user; all 0 if the mean is 0."""
    return (pause * mean_s for pause in one_by_one(random.standard_exponential))
