"""Decides where random numbers come from: one counter-based stream for each purpose.

What is drawn for one purpose never moves what is drawn for another, so two configurations that
are given the same seed see the same arrivals and the same lengths (common random numbers), and
differ by what they do about them alone.
"""

from collections.abc import Callable, Iterator
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from pagetwin.engine.errors import ConfigError

MAX_SEED = 2**63 - 1
BLOCK = 1024
"""Numbers drawn at a time: enough that drawing costs nothing, few enough to waste."""


class Purpose(IntEnum):
    """What numbers are drawn for. A number, once given, keeps its meaning."""

    ARRIVALS = 1
    PROMPTS = 2
    OUTPUTS = 3
    FAMILIES = 4
    THINKING = 5
    TURNS = 6
    THINNING = 7
    ROUTING = 16
    FAILURES = 17
    REPAIRS = 18


def generator(seed: int, purpose: Purpose, index: int = 0) -> np.random.Generator:
    """The stream of a seed, a purpose and, where there are many, one's own index.

    Raises ConfigError for a seed outside 0..2**63 - 1.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed={seed} is outside 0..{MAX_SEED}; use a number from 0 upwards")
    key = np.array([seed, (int(purpose) << 48) + index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def one_by_one(draw: Callable[[int], npt.NDArray[np.float64]]) -> Iterator[float]:
    """Endless numbers from a function that draws as many as it is asked for."""
    while True:
        yield from draw(BLOCK).tolist()
