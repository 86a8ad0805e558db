"""Puts measuring around calls from outside, so that what is measured knows nothing of it."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


@contextmanager
def around(
    owner: Any, name: str, make: Callable[[], AbstractContextManager[Any]]
) -> Iterator[None]:
    """While the body runs, each call of `owner.name` runs inside a context that `make` makes.

    `owner` is an object, a class or a module. Raises AttributeError if it has no such thing.
    """
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with make():
            return plain(*args, **kwargs)

    own = vars(owner).get(name)
    setattr(owner, name, inside)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


class Stopwatch:
    """Adds up seconds by phase. What a phase within another takes is its own alone, so that no
    second counts twice."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._within = [0.0]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = self._clock()
        self._within.append(0.0)
        try:
            yield
        finally:
            took = self._clock() - started
            own = took - self._within.pop()
            self._within[-1] += took
            self.seconds[name] = self.seconds.get(name, 0.0) + own
