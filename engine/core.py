"""The engine's loop: plan a step, have it executed, close it, and write down what happened."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pagetwin.engine.config import EngineConfig
from pagetwin.engine.errors import RequestError, StepFailed
from pagetwin.engine.request import Request
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import (
    DoneStep,
    Executor,
    PendingStep,
    StepPlan,
    StepResult,
    StepUpdate,
    SubmittingExecutor,
)
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    HistoryWriter,
    Origin,
    PlanRecord,
    PreemptRecord,
    RefuseRecord,
    ResetRecord,
    ResultRecord,
    SubmitRecord,
)


class ResultProcessor(Protocol):
    """Looks at each result before it takes effect."""

    def process(self, plan: StepPlan, result: StepResult) -> StepResult:
        """Returns the result with stop strings and beam selections added."""
        ...


@dataclass(frozen=True, slots=True)
class CompletedStep:
    """A step from plan to effect."""

    plan: StepPlan
    result: StepResult
    update: StepUpdate
    failed: tuple[str, ...] = ()
    """Requests that ended because the step could not be carried out."""
    error: str = ""
    """Why it could not."""


class _FailedStep:
    """A step whose execution failed as soon as it began."""

    def __init__(self, error: StepFailed) -> None:
        self._error = error

    def result(self) -> StepResult:
        raise self._error


class EngineCore:
    """One scheduler, one executor, and the order of what happens between them.

    With `async_scheduling` a step is planned before the result of the one before has taken
    effect (docs/policy.md P5.3), and an executor that can works on the one while the other is
    planned; otherwise each step is planned, executed and closed alone.
    The clock measures; it decides nothing.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        *,
        processor: ResultProcessor | None = None,
        history: HistoryWriter | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.scheduler = Scheduler(config.cache, config.scheduler)
        self._executor = executor
        self._processor = processor
        self._history = history
        self._clock = clock
        self._in_flight: deque[tuple[StepPlan, PendingStep]] = deque()
        if history is not None:
            history.write(_header(config, history.origin))

    def add_request(self, request: Request) -> None:
        """Submits a request; RequestError, and nothing changed, if it is refused."""
        try:
            self.scheduler.add_request(request)
        except RequestError as error:
            if self._history is not None:
                self._history.write(RefuseRecord(request=request, error=str(error)))
            raise
        if self._history is not None:
            counters = self.scheduler.counters()
            time_s = self._clock()
            self._history.write(SubmitRecord(request=request, counters=counters, time_s=time_s))

    def abort_request(self, request_id: str) -> bool:
        """Ends a live request; False if there is none of that id."""
        found = self.scheduler.abort_request(request_id)
        if self._history is not None:
            counters = self.scheduler.counters()
            self._history.write(AbortRecord(request_id=request_id, found=found, counters=counters))
        return found

    def preempt_request(self, request_id: str) -> bool:
        """Has the next plan preempt the request; False if nothing of it runs."""
        found = self.scheduler.preempt_request(request_id)
        if self._history is not None:
            counters = self.scheduler.counters()
            self._history.write(
                PreemptRecord(request_id=request_id, found=found, counters=counters)
            )
        return found

    def reset_prefix_cache(self) -> bool:
        """Clears the prefix cache; False while sequences hold blocks."""
        done = self.scheduler.reset_prefix_cache()
        if self._history is not None:
            self._history.write(ResetRecord(done=done, counters=self.scheduler.counters()))
        return done

    def has_unfinished_requests(self) -> bool:
        return self.scheduler.has_unfinished_requests()

    @property
    def num_in_flight(self) -> int:
        """Steps that are started and not finished."""
        return len(self._in_flight)

    def step(self) -> CompletedStep | None:
        """Closes one step; None if there was nothing to do.

        With async scheduling up to one more step is started before.
        """
        started = self.start_step()
        if self.config.scheduler.async_scheduling and started and len(self._in_flight) == 1:
            self.start_step()
        return self.finish_step()

    def start_step(self) -> bool:
        """Plans a step and hands it to the executor; False if there is nothing to plan.

        `step` calls it, and `finish_step`, as the policy wants; whoever calls them alone decides
        what happens while a step is in flight.
        """
        if self._in_flight and isinstance(self._in_flight[-1][1], _FailedStep):
            # It would compute on what that step should have left; its requests end first.
            return False
        start = self._clock()
        plan = self.scheduler.schedule()
        if plan is None:
            return False
        if self._history is not None:
            self._write_plan(self._history, plan, self._clock() - start)
        self._in_flight.append((plan, self._submit(plan)))
        return True

    def _submit(self, plan: StepPlan) -> PendingStep:
        try:
            if isinstance(self._executor, SubmittingExecutor):
                return self._executor.submit(plan)
            return DoneStep(self._executor.execute(plan))
        except StepFailed as error:
            return _FailedStep(error)

    def finish_step(self) -> CompletedStep | None:
        """Lets the oldest step in flight take effect; None if none is in flight.

        One that could not be carried out ends the requests that needed it (`CompletedStep.failed`).
        """
        if not self._in_flight:
            return None
        plan, pending = self._in_flight.popleft()
        failed: tuple[str, ...] = ()
        reason = ""
        try:
            result = pending.result()
        except StepFailed as error:
            reason = str(error)
            result = _nothing_of(plan, reason)
            failed = self._end_those_in(plan)
        if self._processor is not None:
            result = self._processor.process(plan, result)
        start = self._clock()
        update = self.scheduler.update(plan, result)
        if self._history is not None:
            self._write_result(self._history, result, update, self._clock() - start)
        if self.config.debug_invariants:
            self.scheduler.check_invariants()
        return CompletedStep(plan, result, update, failed, reason)

    def _end_those_in(self, plan: StepPlan) -> tuple[str, ...]:
        """Ends the requests whose K/V the step should have made or saved; returns their ids.

        They end before the step's result takes effect, so that none of its blocks is cached.
        """
        seq_ids = [entry.seq_id for entry in plan.scheduled]
        seq_ids += [one.seq_id for one in plan.preempted if one.mode == "swap"]
        names = dict.fromkeys(seq_id.rpartition("/")[0] for seq_id in seq_ids)
        return tuple(name for name in names if self.abort_request(name))

    def _write_plan(self, history: HistoryWriter, plan: StepPlan, schedule_s: float) -> None:
        tables = {}
        if history.with_block_tables:
            tables = {s.seq_id: self.scheduler.block_table(s.seq_id) for s in plan.scheduled}
        history.write(
            PlanRecord(
                plan=plan,
                counters=self.scheduler.counters(),
                block_tables=tables,
                schedule_s=schedule_s,
                time_s=self._clock(),
            )
        )

    def _write_result(
        self, history: HistoryWriter, result: StepResult, update: StepUpdate, update_s: float
    ) -> None:
        history.write(
            ResultRecord.of(
                result,
                update,
                self.scheduler.counters(),
                update_s=update_s,
                time_s=self._clock(),
            )
        )


def _nothing_of(plan: StepPlan, reason: str) -> StepResult:
    """The result of a step that was not carried out."""
    failed = {entry.seq_id: reason for entry in plan.scheduled if entry.samples}
    return StepResult(step=plan.step, failed=failed)


def _header(config: EngineConfig, origin: Origin) -> HeaderRecord:
    return HeaderRecord(
        cache=config.cache,
        scheduler=config.scheduler,
        versions=origin.versions,
        model=config.model.model if config.model else None,
        device=origin.device or config.device,
        dtype=origin.dtype,
        model_config=origin.model_config,
        knobs={
            "attention_backend": config.attention_backend,
            "enforce_eager": str(config.enforce_eager).lower(),
            "batch_invariant": str(config.batch_invariant).lower(),
        },
    )
