"""Endless, repeatable streams of examples from a Hypothesis strategy."""

from collections.abc import Iterator
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

Example = TypeVar("Example")
BATCH = 100
"""Examples drawn at a time: within a batch Hypothesis avoids drawing one twice."""


def stream(strategy: SearchStrategy[Example], number: int) -> Iterator[Example]:
    """Examples for the seed `number`; equal numbers give equal streams.

    Hypothesis only draws here: what fails is shrunk by the suite's own passes, on the engine.
    """
    batch = 0
    while True:
        yield from _batch(strategy, number * 1_000_003 + batch)
        batch += 1


def _batch(strategy: SearchStrategy[Example], number: int) -> list[Example]:
    drawn: list[Example] = []

    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(example: Example) -> None:
        drawn.append(example)

    draw()
    return drawn
