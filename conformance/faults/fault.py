"""Faults, one class each: where it strikes, and whom it may hurt."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from random import Random
from typing import NamedTuple

import msgspec

from pagetwin.engine.core import CompletedStep, EngineCore
from pagetwin.engine.errors import StepFailed
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.step import Executor, StepPlan, StepResult


class Fault:
    """No fault at all; a fault overrides what it disturbs.

    `struck` tells whether it struck, `hit` which requests it may have ended.
    """

    twin_would_follow = True
    """Whether the twin, which knows of no fault, does the same on the recorded events."""

    def __init__(self) -> None:
        self.struck = False
        self.is_over = False
        self.hit: set[str] = set()

    def __str__(self) -> str:
        return "no fault"

    def wrap(self, executor: FingerprintExecutor) -> Executor:
        return executor

    def clock(self) -> Callable[[], float]:
        ticks = count()
        return lambda: float(next(ticks))

    def around_step(self, core: EngineCore, number: int) -> AbstractContextManager[None]:
        """What surrounds step `number` of the driver's loop (from 0)."""
        return nullcontext()

    def step(self, core: EngineCore) -> Iterable[CompletedStep]:
        """One turn of the loop."""
        completed = core.step()
        return [] if completed is None else [completed]


class PoolEmpty(Fault):
    """While step `number` is planned the pool has no free block: every allocation is refused."""

    twin_would_follow = False

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def __str__(self) -> str:
        return f"no block is free in step {self._number}"

    @contextmanager
    def around_step(self, core: EngineCore, number: int) -> Iterator[None]:
        if self.is_over or number != self._number:
            yield
            return
        self.struck = True
        planner = core.scheduler._planner
        plan = planner.plan

        def plan_without_blocks() -> StepPlan | None:
            with _no_free_blocks(core):
                return plan()

        planner.plan = plan_without_blocks  # type: ignore[method-assign]
        try:
            yield
        finally:
            planner.plan = plan  # type: ignore[method-assign]


class Executions(Fault, ABC):
    """Faults of single executions; counts those that matter to it, from 0."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.seen = 0

    def wrap(self, executor: FingerprintExecutor) -> Executor:
        return _Wrapped(executor, self)

    def counts(self, plan: StepPlan) -> bool:
        return True

    def execute(self, plan: StepPlan, executor: FingerprintExecutor) -> StepResult:
        if self.is_over or not self.counts(plan):
            return executor.execute(plan)
        self.seen += 1
        if self.seen != self.number + 1:
            return executor.execute(plan)
        self.struck = True
        return self.strike(plan, executor)

    @abstractmethod
    def strike(self, plan: StepPlan, executor: FingerprintExecutor) -> StepResult:
        """What comes of the execution that the fault hits."""


class StepFails(Executions):
    """Execution `number` fails as a whole: no copy is made, nothing computed, no token drawn."""

    def __str__(self) -> str:
        return f"execution {self.number} fails"

    def strike(self, plan: StepPlan, executor: FingerprintExecutor) -> StepResult:
        executor._update_rows(plan)
        self.hit = {_request(entry.seq_id) for entry in plan.scheduled}
        self.hit |= {_request(one.seq_id) for one in plan.preempted if one.mode == "swap"}
        raise StepFailed("made to fail: out of memory")


class SwapFails(StepFails):
    """Likewise, of the executions that copy blocks to or from the host."""

    def __str__(self) -> str:
        return f"swap {self.number} fails"

    def counts(self, plan: StepPlan) -> bool:
        return bool(plan.swap_outs or plan.swap_ins)


class RowFails(Executions):
    """The token of `request_id` in execution `number` of it is no number (NaN logits)."""

    def __init__(self, number: int, request_id: str) -> None:
        super().__init__(number)
        self._request_id = request_id
        self.hit = {request_id}

    def __str__(self) -> str:
        return f"token {self.number} of {self._request_id} is no number"

    def counts(self, plan: StepPlan) -> bool:
        return any(e.samples and _request(e.seq_id) == self._request_id for e in plan.scheduled)

    def strike(self, plan: StepPlan, executor: FingerprintExecutor) -> StepResult:
        result = executor.execute(plan)
        failed = {
            seq_id: "the logits hold NaN"
            for seq_id in result.sampled
            if _request(seq_id) == self._request_id
        }
        sampled = {key: token for key, token in result.sampled.items() if key not in failed}
        return msgspec.structs.replace(result, sampled=sampled, failed=failed)


class AbortAt(Fault):
    """`request_id` is aborted before step `number`, or, if `in_flight`, while it is in flight."""

    def __init__(self, number: int, request_id: str, *, in_flight: bool = False) -> None:
        super().__init__()
        self._number = number
        self._in_flight = in_flight
        self._request_id = request_id
        self._now = False
        self.hit = {request_id}

    def __str__(self) -> str:
        when = "during" if self._in_flight else "before"
        return f"{self._request_id} is aborted {when} step {self._number}"

    @contextmanager
    def around_step(self, core: EngineCore, number: int) -> Iterator[None]:
        self._now = number == self._number and not self.is_over
        if self._now and not self._in_flight:
            self.struck = core.abort_request(self._request_id)
        yield

    def step(self, core: EngineCore) -> Iterable[CompletedStep]:
        if not (self._now and self._in_flight):
            return super().step(core)
        core.start_step()
        self.struck = core.abort_request(self._request_id)
        completed = core.finish_step()
        return [] if completed is None else [completed]


class ResultTwice(Fault):
    """The result of step `number` is handed in a second time; it must be refused."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number
        self._now = False
        self.accepted = False

    def __str__(self) -> str:
        return f"result {self._number} comes twice"

    @contextmanager
    def around_step(self, core: EngineCore, number: int) -> Iterator[None]:
        self._now = number == self._number and not self.is_over
        yield

    def step(self, core: EngineCore) -> Iterable[CompletedStep]:
        for completed in super().step(core):
            if self._now:
                self.struck = True
                before = core.scheduler.counters()
                try:
                    core.scheduler.update(completed.plan, completed.result)
                except ValueError:
                    self.accepted = core.scheduler.counters() != before
                else:
                    self.accepted = True
            yield completed


class ResultsLate(Fault):
    """Results come now as late as they may, now at once, by a seeded draw in each turn."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._random = Random(seed)

    def __str__(self) -> str:
        return f"results are late or not, by seed {self._seed}"

    def step(self, core: EngineCore) -> Iterable[CompletedStep]:
        allowed = 1 + core.config.scheduler.async_scheduling
        started = core.num_in_flight < allowed and core.start_step()
        self.struck |= core.num_in_flight > 1
        if started and core.num_in_flight < allowed and self._random.random() < 0.6:
            return []
        completed = core.finish_step()
        return [] if completed is None else [completed]


class ClockJumps(Fault):
    """The clock goes back by an hour and on by a day, again and again."""

    def __str__(self) -> str:
        return "the clock jumps"

    def clock(self) -> Callable[[], float]:
        def jumping() -> Iterator[float]:
            now = 0.0
            for number in count():
                now += (0.001, -3600.0, 86400.0)[number % 3]
                self.struck = True
                yield now

        times = jumping()
        return lambda: next(times)


class _Wrapped(NamedTuple):
    executor: FingerprintExecutor
    fault: Executions

    def execute(self, plan: StepPlan) -> StepResult:
        return self.fault.execute(plan, self.executor)


@contextmanager
def _no_free_blocks(core: EngineCore) -> Iterator[None]:
    """The pool owns up only to blocks that are freed meanwhile."""
    queue = core.scheduler._state.blocks.pool._free
    hidden, queue.num_free = queue.num_free, 0
    try:
        yield
    finally:
        queue.num_free += hidden


def _request(seq_id: str) -> str:
    return seq_id.rpartition("/")[0]
