"""When the requests of a workload arrive: all at once, or one by one at random."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pagetwin.engine.errors import ConfigError

_SEED = 20


@dataclass(frozen=True)
class Arrivals:
    """An open loop: Poisson arrivals, whatever the engine does meanwhile.

    `rate` is in requests per second, or, if `is_relative`, a share of what the engine serves when
    all requests are handed in at once: below 1 queues stay short, above 1 they grow.
    """

    rate: float
    is_relative: bool = False

    @classmethod
    def parse(cls, text: str) -> "Arrivals":
        """Reads `poisson:RATE` (requests a second) or `poisson:N%`. Raises ConfigError."""
        found = re.fullmatch(r"poisson:(\d+(?:\.\d*)?|\.\d+)(%?)", text)
        rate = float(found[1]) if found else 0.0
        if not found or rate == 0:
            raise ConfigError(
                f"arrival {text!r} is neither poisson:RATE, in requests a second, nor poisson:N%, "
                "of the rate when all requests are handed in at once; RATE and N are above 0"
            )
        return cls(rate / 100, True) if found[2] else cls(rate)

    def __str__(self) -> str:
        return f"poisson:{self.rate:.0%}" if self.is_relative else f"poisson:{self.rate:g}"

    def times(self, count: int, closed_rate: float) -> Sequence[float]:
        """Seconds from the start at which `count` requests arrive, ascending; the same each time.

        `closed_rate`: requests a second when all are handed in at once.
        """
        rate = self.rate * closed_rate if self.is_relative else self.rate
        gaps = np.random.default_rng(_SEED).exponential(1 / rate, count)
        times: list[float] = np.cumsum(gaps).tolist()
        return times
