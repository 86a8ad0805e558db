"""How faults strike our engine: through what it is made of, never by a branch inside it.

An executor is handed over in a wrapper, a clock is another clock, a scheduler refuses blocks while
a plan is made (Scheduler.without_free_blocks), and a result is handed in again through the
observer that every engine has (LLMEngine.on_step).
"""

from collections.abc import Callable, Collection
from itertools import count

import msgspec

from pagetwin.conformance.answers import fails_by_chance
from pagetwin.conformance.faults.fault import (
    AllocationFails,
    AnyFault,
    ClockJumps,
    PoolEmpty,
    ResultTwice,
    RowFails,
    StepFails,
    SwapFails,
)
from pagetwin.engine.core import CompletedStep
from pagetwin.engine.errors import StepFailed
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.step import StepPlan, StepResult

_JUMPS_S = (0.001, -3600.0, 0.5, 86400.0, -90000.0)
"""By how much the clock goes on at each look: so many that no step always sees the same."""


class Strikes:
    """One session's fault: whether it is time, and what it did so far.

    `failing_requests` are those of a scenario: some of their rows, by a hash, fail as well.
    """

    def __init__(self, fault: AnyFault | None, failing_requests: Collection[str] = ()) -> None:
        self.fault = fault
        self.is_over = False
        self.count = 0
        self.hit: set[str] = set()
        """Requests that it may have ended."""
        self.accepted_twice = False
        """Whether a result took effect a second time."""
        self._failing_requests = frozenset(failing_requests)
        self.failing_allocation: int | None = None
        """Which tensor of the execution that has begun finds no memory; None if all do."""
        self._step = 0
        self._in_execution: set[str] = set()
        """Requests that end if the execution fails."""
        self._rows_fail_now = False
        self._num_plans = self._num_executions = self._num_results = 0

    def begin(self, plan: StepPlan) -> bool:
        """Notes that the plan is about to be executed; whether it fails as a whole."""
        self._step = plan.step
        self._rows_fail_now = False
        self.failing_allocation = None
        self._in_execution = {_request(entry.seq_id) for entry in plan.scheduled}
        self._in_execution |= {_request(e.seq_id) for e in plan.preempted if e.mode == "swap"}
        fault = self.fault
        if self.is_over:
            return False
        if isinstance(fault, RowFails):
            draws = any(
                e.samples and _request(e.seq_id) == fault.request_id for e in plan.scheduled
            )
            self._rows_fail_now = self._is_now(fault.number, counts=draws)
            if self._rows_fail_now:
                self.hit.add(fault.request_id)
        elif isinstance(fault, StepFails | SwapFails):
            moves = bool(plan.swap_outs or plan.swap_ins)
            if self._is_now(fault.number, counts=moves or isinstance(fault, StepFails)):
                self.hit |= self._in_execution
                return True
        elif isinstance(fault, AllocationFails):
            if self._num_executions == fault.number:
                self.failing_allocation = fault.allocation
            self._num_executions += 1
        return False

    def refuse_memory(self) -> None:
        """Notes that the execution that has begun got no memory for a tensor."""
        self.count += 1
        self.hit |= self._in_execution

    def row_fails(self, seq_id: str) -> bool:
        """Whether the sequence must not get a token in the execution that has begun."""
        request_id = _request(seq_id)
        if request_id in self._failing_requests and fails_by_chance(seq_id, self._step):
            return True
        fault = self.fault
        return (
            self._rows_fail_now and isinstance(fault, RowFails) and request_id == fault.request_id
        )

    def attach(self, engine: LLMEngine) -> None:
        """Lets the fault strike the engine's plans and results."""
        if isinstance(self.fault, PoolEmpty):
            self._refuse_blocks(engine, self.fault)
        if isinstance(self.fault, ResultTwice):
            self._repeat_results(engine, self.fault.number)

    def clock(self, sound: Callable[[], float]) -> Callable[[], float]:
        """The clock that the engine gets instead of a sound one."""
        if not isinstance(self.fault, ClockJumps):
            return sound
        now, jumps = 0.0, count()

        def jumping() -> float:
            nonlocal now
            if self.is_over:
                return now
            self.count += 1
            now += _JUMPS_S[next(jumps) % len(_JUMPS_S)]
            return now

        return jumping

    def _is_now(self, number: int, *, counts: bool) -> bool:
        self._num_executions += counts
        strikes = counts and self._num_executions == number + 1
        self.count += strikes
        return strikes

    def _refuse_blocks(self, engine: LLMEngine, fault: PoolEmpty) -> None:
        scheduler = engine.core.scheduler
        schedule = scheduler.schedule

        def schedule_without_blocks() -> StepPlan | None:
            self._num_plans += 1
            if self.is_over or not fault.strikes(self._num_plans - 1):
                return schedule()
            self.count += 1
            with scheduler.without_free_blocks():
                return schedule()

        scheduler.schedule = schedule_without_blocks  # type: ignore[method-assign]

    def _repeat_results(self, engine: LLMEngine, number: int) -> None:
        scheduler = engine.core.scheduler

        def repeat(completed: CompletedStep) -> None:
            self._num_results += 1
            if self.is_over or self._num_results != number + 1:
                return
            self.count += 1
            before = scheduler.counters()
            try:
                scheduler.update(completed.plan, completed.result)
            except ValueError:
                self.accepted_twice = scheduler.counters() != before
            else:
                self.accepted_twice = True

        engine.on_step = repeat


class FingerprintUnderFault:
    """The executor without a model, whose executions and rows fail when it is time."""

    def __init__(self, executor: FingerprintExecutor, strikes: Strikes) -> None:
        self._executor = executor
        self._strikes = strikes

    def execute(self, plan: StepPlan) -> StepResult:
        if self._strikes.begin(plan):
            self._executor.follow(plan)
            raise StepFailed("made to fail: out of memory")
        result = self._executor.execute(plan)
        failed = {
            seq_id: "made to fail: the logits hold NaN"
            for seq_id in result.sampled
            if self._strikes.row_fails(seq_id)
        }
        sampled = {key: token for key, token in result.sampled.items() if key not in failed}
        return msgspec.structs.replace(result, sampled=sampled, failed=failed)


def _request(seq_id: str) -> str:
    return seq_id.rpartition("/")[0]
