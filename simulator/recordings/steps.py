"""Decides what is known of a measured step, and how the host's time is told apart."""

import math
from collections.abc import Iterable, Iterator, Sequence
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
    """From one result to the next, with one plan between them."""

    begun_s: float
    plan_s: float
    closed: Step
    end_s: float

    def tell(self, planned: Step, timings: StepTimings) -> None:
        """`planned` is the step that was planned, and these are its phases."""
        ready_s = self.plan_s + timings.prepare_s
        planned.before_seconds = ready_s - self.begun_s
        planned.launch_seconds = timings.execute_s
        left_s = self.end_s - ready_s - timings.execute_s
        self.closed.after_seconds = left_s - self.closed.wait_seconds


class HostTimes:
    """Divides the time between two results: it went into planning and launching one step, and
    into awaiting and closing another, the same one if none is planned ahead."""

    def __init__(self) -> None:
        self._last_result_s: float | None = None
        self._planned: list[tuple[int, float | None]] = []
        self._untold: dict[int, _Cycle] = {}
        """By the step that was planned, whose phases its result will tell."""

    def plan(self, number: int, time_s: float | None) -> None:
        self._planned.append((number, time_s))

    def result(self, number: int, step: Step, timings: StepTimings, now: float) -> None:
        """Step `number` was closed; its figures, and those of the one before, are filled in."""
        cycle = self._untold.pop(number, None)
        if cycle is not None:
            cycle.tell(step, timings)
        if self._last_result_s is not None and len(self._planned) == 1:
            [(planned, plan_s)] = self._planned
            if plan_s is not None:
                cycle = _Cycle(self._last_result_s, plan_s, step, now)
                if planned == number:
                    cycle.tell(step, timings)
                else:
                    self._untold[planned] = cycle
        self._planned, self._last_result_s = [], now

    def idle(self) -> None:
        """Nothing is left to do: what comes before the next plan is not the host's work."""
        self._last_result_s = None
