"""Endless, repeatable streams of examples from a Hypothesis strategy."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from random import Random
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

Example = TypeVar("Example")
NUM_BYTES = 4096
"""Random bytes for one example; what it does not need is left."""


def stream(strategy: SearchStrategy[Example], number: int) -> Iterator[Example]:
    """Examples for the seed `number`; equal numbers give equal streams.

    Hypothesis only draws here: what fails is shrunk by the suite's own passes, on the engine. It
    draws from random bytes and does not search, so that an example does not depend on those before
    it, and rare things keep the odds that the strategy gives them.
    """
    draw = _drawing(strategy)
    for index in count():
        yield _example(draw, number, index)


def example(strategy: SearchStrategy[Example], number: int, index: int) -> Example:
    """Example `index` (from 0) of `stream(strategy, number)`."""
    found: Example = _example(_drawing(strategy), number, index)
    return found


def _example(draw: Callable[[bytes], list[Example]], number: int, index: int) -> Example:
    for attempt in count():
        # Bytes that make no example are rare; then the next ones are taken.
        drawn: list[Example] = draw(Random(f"{number} {index} {attempt}").randbytes(NUM_BYTES))
        if drawn:
            return drawn[0]
    raise AssertionError("unreachable")


@lru_cache(maxsize=16)
def _drawing(strategy: SearchStrategy[Example]) -> Callable[[bytes], list[Example]]:
    """Hypothesis' own way from bytes to an example; an empty list if they make none."""
    drawn: list[Example] = []

    @settings(database=None, deadline=None)
    @given(strategy)
    def take(example: Example) -> None:
        drawn.append(example)

    fuzz: Callable[[bytes], Any] = take.hypothesis.fuzz_one_input  # type: ignore[attr-defined]

    def draw(data: bytes) -> list[Example]:
        drawn.clear()
        fuzz(data)
        return list(drawn)

    return draw
