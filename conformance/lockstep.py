"""Lockstep: two schedulers decide the same events side by side, and every answer is compared.

`run_lockstep` drives both live from a scenario; `replay_history` drives one from a recorded
history (docs/policy.md P1.5) and compares it with the record. Both stop at the first
difference and report what differs, and only that.
"""

from collections.abc import Iterable
from contextlib import suppress

from pagetwin.conformance.comparison import Comparison, DifferenceFound, LockstepReport
from pagetwin.conformance.scenario import (
    AbortEvent,
    AnyEvent,
    PreemptEvent,
    ResultEvent,
    Scenario,
    SubmitEvent,
)
from pagetwin.engine.errors import RequestError
from pagetwin.engine.request import Request
from pagetwin.engine.step import (
    Counters,
    Executor,
    SteppingScheduler,
    StepPlan,
    StepResult,
)
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    HistoryWriter,
    PlanRecord,
    PreemptRecord,
    Record,
    RefuseRecord,
    ResetRecord,
    ResultRecord,
    SubmitRecord,
)


def run_lockstep(
    scenario: Scenario,
    left: SteppingScheduler,
    right: SteppingScheduler,
    executor: Executor,
    *,
    history: HistoryWriter | None = None,
) -> LockstepReport:
    """Runs the scenario on both sides; the left's plans are executed, once, for both.

    With `async_scheduling` a plan is made before the result of the one before is applied. What
    the left did is written to `history`. Ends at the first difference, when everything has
    finished, or, as a difference, when that takes more than `scenario.max_rounds`.
    """
    run = _LiveRun(scenario, left, right, executor, history or HistoryWriter())
    with suppress(DifferenceFound):
        run.drive()
    return run.comparison.report()


def replay_history(records: Iterable[Record], twin: SteppingScheduler) -> LockstepReport:
    """Replays a history on `twin` in the recorded order: what it did is the left side."""
    comparison = Comparison(left_name="history", right_name="twin")
    replay = _Replay(twin, comparison)
    with suppress(DifferenceFound):
        for record in records:
            replay.apply(record)
    return comparison.report()


class _LiveRun:
    """One live lockstep run. Rounds are explained in conformance/scenario.py."""

    def __init__(
        self,
        scenario: Scenario,
        left: SteppingScheduler,
        right: SteppingScheduler,
        executor: Executor,
        history: HistoryWriter,
    ) -> None:
        self.comparison = Comparison(left_name="left", right_name="right")
        self._scenario = scenario
        self._requests = scenario.requests_by_id()
        self._left = left
        self._right = right
        self._executor = executor
        self._history = history
        self._in_flight: list[tuple[StepPlan, StepPlan, StepResult]] = []
        """The left's plan, the right's, and the result for both."""

    def drive(self) -> None:
        scenario = self._scenario
        self._history.write(HeaderRecord(cache=scenario.cache, scheduler=scenario.scheduler))
        for number in range(scenario.max_rounds + 1):
            if self._is_over(number):
                return
            self.comparison.where = f"round {number}"
            self._round(number)
        self.comparison.fail(
            f"round {scenario.max_rounds}",
            {"unfinished": self._left.has_unfinished_requests()},
            {"unfinished": "should have finished by now"},
        )

    def _is_over(self, number: int) -> bool:
        unfinished = self._left.has_unfinished_requests()
        self.comparison.equal(
            "has_unfinished_requests", unfinished, self._right.has_unfinished_requests()
        )
        return number > self._scenario.last_round and not unfinished

    def _round(self, number: int) -> None:
        for event in self._scenario.events_at(number, in_flight=False):
            self._apply(event)
        waited_for = len(self._in_flight)
        had_work = self._left.has_unfinished_requests()
        planned = self._plan()
        if not planned and had_work and not waited_for:
            self.comparison.fail(
                "schedule: nothing planned and nothing in flight",
                {"plan": None, "unfinished": True},
                {"plan": "some sequence (docs/policy.md P2.6)"},
            )
        for event in self._scenario.events_at(number, in_flight=True):
            self._apply(event)
        if self._in_flight and (waited_for or not self._scenario.scheduler.async_scheduling):
            self._update(*self._in_flight.pop(0))

    def _apply(self, event: AnyEvent) -> None:
        if isinstance(event, SubmitEvent):
            self._submit(self._requests[event.request_id])
        elif isinstance(event, AbortEvent):
            found = self._left.abort_request(event.request_id)
            self.comparison.equal(
                f"abort {event.request_id}", found, self._right.abort_request(event.request_id)
            )
            counters = self._counters(f"abort {event.request_id}")
            self._history.write(
                AbortRecord(request_id=event.request_id, found=found, counters=counters)
            )
        elif isinstance(event, PreemptEvent):
            what = f"preempt {event.request_id}"
            found = self._left.preempt_request(event.request_id)
            self.comparison.equal(what, found, self._right.preempt_request(event.request_id))
            counters = self._counters(what)
            self._history.write(
                PreemptRecord(request_id=event.request_id, found=found, counters=counters)
            )
        elif isinstance(event, ResultEvent):
            if self._in_flight:
                self._update(*self._in_flight.pop(0))
        else:
            done = self._left.reset_prefix_cache()
            self.comparison.equal("reset", done, self._right.reset_prefix_cache())
            self._history.write(ResetRecord(done=done, counters=self._counters("reset")))

    def _submit(self, request: Request) -> None:
        what = f"submit {request.request_id}"
        left, right = refusal(self._left, request), refusal(self._right, request)
        self.comparison.refusals += left is not None
        self.comparison.equal(what, left is not None, right is not None, note=left or right or "")
        counters = self._counters(what)
        if left is None:
            self._history.write(SubmitRecord(request=request, counters=counters))
        else:
            self._history.write(RefuseRecord(request=request, error=left))

    def _plan(self) -> bool:
        plan, other = self._left.schedule(), self._right.schedule()
        self.comparison.plans(plan, other)
        counters = self._counters("schedule")
        if plan is None or other is None:
            return False
        tables = self.comparison.block_tables(plan, self._left.block_table, self._right.block_table)
        self._history.write(PlanRecord(plan=plan, counters=counters, block_tables=tables))
        self._in_flight.append((plan, other, self._executor.execute(plan)))
        return True

    def _update(self, plan: StepPlan, other: StepPlan, result: StepResult) -> None:
        update = self._left.update(plan, result)
        self.comparison.updates(update, self._right.update(other, result))
        self._history.write(ResultRecord.of(result, update, self._counters(f"step {plan.step}")))

    def _counters(self, event: str) -> Counters:
        counters = self._left.counters()
        self.comparison.counters(event, counters, self._right.counters())
        return counters


class _Replay:
    """Applies records to the twin and compares its answers with what they say."""

    def __init__(self, twin: SteppingScheduler, comparison: Comparison) -> None:
        self._twin = twin
        self._comparison = comparison
        self._plans: dict[int, StepPlan] = {}
        self._line = 0

    def apply(self, record: Record) -> None:
        self._line += 1
        self._comparison.where = f"record {self._line}"
        if isinstance(record, SubmitRecord | RefuseRecord):
            self._submit(record)
        elif isinstance(record, AbortRecord):
            found = self._twin.abort_request(record.request_id)
            self._comparison.equal(f"abort {record.request_id}", record.found, found)
            self._counters(f"abort {record.request_id}", record.counters)
        elif isinstance(record, PreemptRecord):
            found = self._twin.preempt_request(record.request_id)
            self._comparison.equal(f"preempt {record.request_id}", record.found, found)
            self._counters(f"preempt {record.request_id}", record.counters)
        elif isinstance(record, ResetRecord):
            self._comparison.equal("reset", record.done, self._twin.reset_prefix_cache())
            self._counters("reset", record.counters)
        elif isinstance(record, PlanRecord):
            self._plan(record)
        elif isinstance(record, ResultRecord):
            self._result(record)

    def _submit(self, record: SubmitRecord | RefuseRecord) -> None:
        what = f"submit {record.request.request_id}"
        refused = isinstance(record, RefuseRecord)
        error = refusal(self._twin, record.request)
        self._comparison.refusals += refused
        self._comparison.equal(what, refused, error is not None, note=error or "")
        if isinstance(record, SubmitRecord):
            self._counters(what, record.counters)

    def _plan(self, record: PlanRecord) -> None:
        plan = self._twin.schedule()
        self._comparison.plans(record.plan, plan)
        if plan is not None:
            self._plans[plan.step] = plan
        if record.block_tables:
            self._comparison.block_tables(
                record.plan, lambda seq_id: record.block_tables[seq_id], self._twin.block_table
            )
        self._counters("schedule", record.counters)

    def _result(self, record: ResultRecord) -> None:
        plan = self._plans.pop(record.step, None)
        if plan is None:
            self._comparison.fail(
                f"step {record.step}", {"plan": "missing"}, {"plan": "before its result"}
            )
            return
        update = self._twin.update(plan, record.to_result())
        self._comparison.updates(record.to_update(), update)
        self._counters(f"step {record.step}", record.counters)

    def _counters(self, event: str, recorded: Counters) -> None:
        self._comparison.counters(event, recorded, self._twin.counters())


def refusal(scheduler: SteppingScheduler, request: Request) -> str | None:
    """Submits the request; the error's text if it is refused."""
    try:
        scheduler.add_request(request)
    except RequestError as error:
        return str(error)
    return None
