"""Decides how many tokens a drawn prompt or output has."""

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.workloads.draws import one_by_one


class Fixed(msgspec.Struct, frozen=True, tag="fixed"):
    """Always the same."""

    tokens: int

    def __post_init__(self) -> None:
        _at_least_one("length", self.tokens)

    def draws(self, random: np.random.Generator) -> Iterator[int]:
        """Endless lengths."""
        while True:
            yield self.tokens


class Uniform(msgspec.Struct, frozen=True, tag="uniform"):
    """Each whole number from low to high as likely as the next."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _at_least_one("the low end of a uniform length", self.low)
        if self.high < self.low:
            raise ConfigError(
                f"uniform lengths from {self.low} to {self.high} are none; name the low end first"
            )

    def draws(self, random: np.random.Generator) -> Iterator[int]:
        """Endless lengths."""
        width = self.high - self.low + 1
        for u in one_by_one(random.random):
            yield self.low + int(u * width)


class LogNormal(msgspec.Struct, frozen=True, tag="lognormal"):
    """Log-normal by its mean and its coefficient of variation, rounded, and cut to 1..most."""

    mean: float
    cv: float
    """Standard deviation over mean."""
    most: int | None = None
    """No length is above it; None for no such limit."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and self.mean >= 1):
            raise ConfigError(
                f"a log-normal length of mean {self.mean!r}; give a number of tokens from 1 upwards"
            )
        if not (math.isfinite(self.cv) and self.cv >= 0):
            raise ConfigError(
                f"a log-normal length with coefficient of variation {self.cv!r}; give the standard "
                "deviation over the mean, from 0 upwards"
            )
        if self.most is not None:
            _at_least_one("the largest log-normal length", self.most)

    def draws(self, random: np.random.Generator) -> Iterator[int]:
        """Endless lengths."""
        variance = math.log1p(self.cv**2)
        middle, spread = math.log(self.mean) - variance / 2, math.sqrt(variance)
        most = self.most or math.inf
        for z in one_by_one(random.standard_normal):
            # The exponent is held so that no tail, however long, overflows.
            yield int(min(max(1, round(math.exp(min(middle + spread * z, 43.0)))), most))


class Resampled(msgspec.Struct, frozen=True, tag="resampled"):
    """One of the given lengths, each as likely as the next."""

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("there are no lengths to draw from; name a trace with entries")
        _at_least_one("a length to draw from", min(self.values))

    def draws(self, random: np.random.Generator) -> Iterator[int]:
        """Endless lengths."""
        count = len(self.values)
        for u in one_by_one(random.random):
            yield self.values[int(u * count)]


Lengths = Fixed | Uniform | LogNormal | Resampled


def fitted(values: Sequence[int]) -> LogNormal:
    """The log-normal of largest likelihood for the given lengths, cut at the largest of them.

    ConfigError if there are fewer than two.
    """
    if len(values) < 2:
        raise ConfigError(f"{len(values)} lengths are too few to fit; it takes at least 2")
    logs = np.log(np.asarray(values, dtype=np.float64))
    variance = float(logs.var())
    mean = math.exp(float(logs.mean()) + variance / 2)
    return LogNormal(mean=max(1.0, mean), cv=math.sqrt(math.expm1(variance)), most=max(values))


def _at_least_one(what: str, tokens: int) -> None:
    if tokens < 1:
        raise ConfigError(f"{what} is {tokens} tokens; a request has at least 1 of each kind")
