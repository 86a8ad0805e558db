"""What an experiment is: it drives an engine through sessions and yields evidence."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.suite.evidence import Evidence


class Budget:
    """Seconds that an experiment may use, and its share of the run's false alarms.

    The clock only says when to stop: the stream of examples is a function of the seed, and a
    longer budget sees more of the same stream.
    """

    def __init__(
        self,
        seconds: float,
        *,
        alpha: Mapping[str, float] | None = None,
        max_examples: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.max_examples = max_examples
        """Examples after which to stop whatever the clock says; None for no such limit."""
        self._alpha = dict(alpha or {})
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - self._clock())

    def allows(self, examples_done: int) -> bool:
        """Whether to begin another example. The first is always begun."""
        if self.max_examples is not None and examples_done >= self.max_examples:
            return False
        return examples_done == 0 or self.left_s > 0

    def alpha(self, property_id: str) -> float:
        """The false-alarm probability that this property's tests may use up in this run."""
        return self._alpha.get(property_id, 0.0)


class Experiment(Protocol):
    """Judges properties by driving an engine."""

    @property
    def id(self) -> str: ...

    @property
    def judges(self) -> tuple[str, ...]:
        """Properties that it gives evidence on."""
        ...

    @property
    def needs(self) -> frozenset[Flag]:
        """Without these it cannot run at all; what a single property needs beyond them is in the
        catalogue."""
        ...

    @property
    def weight(self) -> float:
        """Share of the run's time, relative to the other experiments'."""
        ...

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        """Yields evidence as it comes, so that a run that is cut short keeps what it has.

        Equal seeds give equal streams. Raises AdapterError where the engine breaks.
        """
        ...
