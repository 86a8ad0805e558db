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
    """Adds up seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + took
