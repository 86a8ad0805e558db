"""Snapshots: a whole world as bytes, so that every action starts from the same state.

Pickling is three times as fast here as deepcopy, and faster than replaying from the start from
the second step on. What is frozen is not copied: it goes by reference, beside the bytes.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sequence import SequenceStatus
from pagetwin.engine.step import Counters, StepPlan

_FROZEN = (Request, StepPlan, Counters, CacheConfig, SchedulerConfig, SequenceStatus)


class Snapshot(NamedTuple):
    data: bytes
    frozen: tuple[Any, ...]


_restoring: tuple[Any, ...] = ()
"""What the snapshot that is being restored refers to; pickle can hand its reducers no context."""


def _frozen_at(index: int) -> Any:
    return _restoring[index]


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer, protocol=5)
        self.frozen: list[Any] = []

    def reducer_override(self, obj: Any) -> tuple[Callable[[int], Any], tuple[int]] | Any:
        if isinstance(obj, _FROZEN):
            self.frozen.append(obj)
            return _frozen_at, (len(self.frozen) - 1,)
        return NotImplemented


def take(world: Any) -> Snapshot:
    """The world as it is now."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(world)
    return Snapshot(buffer.getvalue(), tuple(pickler.frozen))


def restore(snapshot: Snapshot) -> Any:
    """A world of its own in that state; plans and requests are the very same objects."""
    global _restoring
    _restoring = snapshot.frozen
    try:
        return pickle.loads(snapshot.data)
    finally:
        _restoring = ()
