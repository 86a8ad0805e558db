"""Decides what is known of a measured step, and how the host's time is told apart."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pagetwin.engine.step import StepTimings
from pagetwin.simulator.cost_model import StepComposition

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

PARTS = StepComposition.__struct_fields__


class Step(msgspec.Struct, kw_only=True):
    """A measured step, in seconds; what its history does not tell is not a number."""

    parts: StepComposition
    seconds: float
    """From the end of the one before, or from where it could begin, to its own."""
    device_seconds: float
    """The GPU's; 0 on a CPU."""
    graph_size: int
    """0 where no CUDA graph ran the step."""
    before_seconds: float = math.nan
    """The host's, from the last result until the step's inputs were on their way."""
    launch_seconds: float = math.nan
    """The host's, for the forward pass."""
    wait_seconds: float
    """The host's, for the step to end and for its tokens."""
    after_seconds: float = math.nan
    """The host's, to close it."""
    is_first: bool
    """Whether the engine had been idle."""
    is_ahead: bool
    """Whether it was planned while the one before was in flight."""


class StepTable(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of one or several runs in order, a row each; columns as in `Step`."""

    parts: Floats
    """[num_steps, len(PARTS)]: the composition, its fields in the order of PARTS."""
    seconds: Floats
    device_seconds: Floats
    graph_size: Floats
    before_seconds: Floats
    launch_seconds: Floats
    wait_seconds: Floats
    after_seconds: Floats
    is_first: Flags
    is_ahead: Flags

    def __len__(self) -> int:
        return len(self.seconds)

    def column(self, name: str) -> Floats:
        """Of a field of the composition."""
        column: Floats = self.parts[:, PARTS.index(name)]
        return column

    def compositions(self) -> Iterator[StepComposition]:
        for row in self.parts.astype(np.int64).tolist():
            yield StepComposition(**dict(zip(PARTS, row, strict=True)))

    def where(self, chosen: Flags) -> "StepTable":
        """Those rows only."""
        return StepTable(**{name: getattr(self, name)[chosen] for name in _COLUMNS})

    @classmethod
    def of(cls, steps: Sequence[Step]) -> "StepTable":
        columns: dict[str, Any] = {}
        for name in _COLUMNS[1:]:
            kind = np.bool_ if name.startswith("is_") else np.float64
            columns[name] = np.array([getattr(step, name) for step in steps], kind)
        parts = [msgspec.structs.astuple(step.parts) for step in steps]
        return cls(parts=np.array(parts, np.float64).reshape(-1, len(PARTS)), **columns)

    @classmethod
    def joined(cls, tables: Iterable["StepTable"]) -> "StepTable":
        some = list(tables) or [cls.of([])]
        return cls(
            **{name: np.concatenate([getattr(table, name) for table in some]) for name in _COLUMNS}
        )


_COLUMNS = StepTable.__struct_fields__


@dataclass(frozen=True)
class _Cycle:
    """From one result, or the end of an idle time, to the next result."""

    begun_s: float
    plans: tuple[tuple[int, float], ...]
    """Number and time of each step that was planned meanwhile, at least one."""
    closed: Step
    end_s: float

    def tell(self, phases: Mapping[int, tuple[Step, StepTimings]]) -> None:
        """Fills in the figures of the steps that were planned, and of the one that was closed."""
        free_s = self.begun_s
        for number, plan_s in self.plans:
            step, timings = phases[number]
            ready_s = plan_s + timings.prepare_s
            step.before_seconds = ready_s - free_s
            step.launch_seconds = timings.execute_s
            free_s = ready_s + timings.execute_s
        self.closed.after_seconds = self.end_s - free_s - self.closed.wait_seconds


class HostTimes:
    """Divides the time between two results: it went into planning and launching steps, mostly one,
    and into awaiting and closing another, or the same one if none is planned ahead."""

    def __init__(self) -> None:
        self._begun_s: float | None = None
        self._plans: list[tuple[int, float | None]] = []
        self._cycle: _Cycle | None = None
        """The last one, if a step of it has no result yet that tells its phases."""
        self._phases: dict[int, tuple[Step, StepTimings]] = {}

    def begin(self, now: float) -> None:
        """There is something to do again."""
        self._begun_s = now

    def plan(self, number: int, time_s: float | None) -> None:
        self._plans.append((number, time_s))

    def result(self, number: int, step: Step, timings: StepTimings, now: float) -> None:
        """Step `number` was closed; figures that can be told now are filled in."""
        self._phases[number] = step, timings
        self._tell()
        plans = tuple((planned, at) for planned, at in self._plans if at is not None)
        if self._begun_s is not None and plans and len(plans) == len(self._plans):
            self._cycle = _Cycle(self._begun_s, plans, step, now)
            self._tell()
        self._plans, self._begun_s = [], now

    def idle(self) -> None:
        """Nothing is left to do: what comes before `begin` is not the host's work."""
        self._begun_s = None
        self._phases.clear()

    def _tell(self) -> None:
        cycle = self._cycle
        if cycle is not None and all(number in self._phases for number, _ in cycle.plans):
            cycle.tell(self._phases)
            last = max(self._phases)
            self._phases = {last: self._phases[last]}
            self._cycle = None
