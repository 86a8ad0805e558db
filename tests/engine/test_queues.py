"""The line of those that wait, against a plain list that is sorted anew each time."""

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.engine.queues import AdmissionQueue
from pagetwin.engine.sequence import Sequence


class Waiting:
    """All of a sequence that the line looks at."""

    def __init__(self, name: str, *order_key: Any) -> None:
        self.seq_id = name
        self.order_key = (*order_key, name)


def waiting(name: str, *order_key: Any) -> Sequence:
    return cast(Sequence, Waiting(name, *order_key))


class Line:
    """docs/policy.md P2.3 and P3.2a, as slowly as they read."""

    def __init__(self, *, returning_first: bool) -> None:
        self._returning_first = returning_first
        self._returning: list[Sequence] = []
        self._new: list[Sequence] = []

    def add(self, seq: Sequence) -> None:
        self._new.append(seq)
        self._new.sort(key=lambda one: one.order_key)

    def add_preempted(self, seq: Sequence, *, yielding: bool) -> None:
        if not self._returning_first:
            self.add(seq)
        elif yielding:
            self._returning.append(seq)
        else:
            self._returning.insert(0, seq)

    def remove(self, seq: Sequence) -> None:
        (self._returning if seq in self._returning else self._new).remove(seq)

    def all(self) -> list[Sequence]:
        return [*self._returning, *self._new]


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=20, max_size=60),
)
def test_the_line_is_in_the_order_of_a_list(
    returning_first: bool, moves: list[tuple[int, int]]
) -> None:
    queue = AdmissionQueue(returning_first=returning_first)
    line = Line(returning_first=returning_first)
    out: list[Sequence] = []
    for number, (move, which) in enumerate(moves):
        standing = line.all()
        if move < 2:
            seq = waiting(f"s{number:02}", which)
            queue.add(seq)
            line.add(seq)
        elif move < 4 and out:
            # Those that come back: a stale entry of each may still be in the heap.
            seq = out.pop(which % len(out))
            queue.add_preempted(seq, yielding=move == 3)
            line.add_preempted(seq, yielding=move == 3)
        elif standing:
            seq = standing[0 if move == 4 else which % len(standing)]
            queue.remove(seq)
            line.remove(seq)
            out.append(seq)
        assert len(queue) == len(line.all())
        assert shown(queue) == line.all()
        assert queue.head() is next(iter(line.all()), None)


def shown(queue: AdmissionQueue) -> list[Sequence]:
    """The whole line from its head on; it stands as it stood, afterwards."""
    found = []
    while (head := queue.head()) is not None:
        found.append(head)
        queue.pass_over()
    queue.rejoin()
    return found


def test_without_being_told_a_preempted_sequence_goes_in_front() -> None:
    queue = AdmissionQueue(returning_first=True)
    for name in "ab":
        queue.add_preempted(waiting(name))
    queue.add(waiting("new", -1))
    assert [one.seq_id for one in shown(queue)] == ["b", "a", "new"]


def test_one_that_was_passed_over_can_leave_and_nobody_passes_an_empty_line() -> None:
    queue = AdmissionQueue(returning_first=True)
    first, second = waiting("a", 1), waiting("b", 2)
    queue.add(first)
    queue.add(second)
    queue.pass_over()
    queue.remove(first)
    queue.rejoin()
    assert shown(queue) == [second]
    queue.remove(second)
    with pytest.raises(AssertionError):
        queue.pass_over()
