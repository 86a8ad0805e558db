"""What is put around a call from outside, and that nothing of it stays."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pagetwin.conformance.bench.probes import Stopwatch, around


class Adder:
    def __init__(self) -> None:
        self.log: list[str] = []

    def add(self, a: int, *, b: int) -> int:
        self.log.append("add")
        return a + b

    @contextmanager
    def logged(self) -> Iterator[None]:
        self.log.append("in")
        yield
        self.log.append("out")


def test_a_call_runs_inside_and_returns_what_it_did() -> None:
    adder = Adder()
    with around(adder, "add", adder.logged):
        assert adder.add(1, b=2) == 3
    assert adder.log == ["in", "add", "out"]
    assert adder.add(1, b=1) == 2
    assert adder.log == ["in", "add", "out", "add"]
    assert "add" not in vars(adder)


def test_a_class_is_as_it_was_too() -> None:
    plain, watch = Adder.add, Stopwatch()
    with around(Adder, "add", lambda: watch.phase("add")):
        Adder().add(1, b=2)
        Adder().add(1, b=2)
    assert Adder.add is plain
    assert watch.seconds["add"] > 0


def test_it_is_taken_away_when_the_body_raises() -> None:
    adder = Adder()
    with pytest.raises(RuntimeError), around(adder, "add", adder.logged):
        raise RuntimeError
    assert "add" not in vars(adder)


def test_what_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError), around(Adder(), "subtract", Adder().logged):
        pass


def test_seconds_of_a_phase_within_another_are_its_own_alone() -> None:
    times = iter((0.0, 1.0, 3.0, 10.0, 15.0, 16.0))
    watch = Stopwatch(lambda: next(times))
    with watch.phase("outer"), watch.phase("inner"):
        pass
    with watch.phase("inner"):
        pass
    assert watch.seconds == {"inner": 2.0 + 1.0, "outer": 10.0 - 2.0}
