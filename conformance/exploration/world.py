"""A world: engine, twin and checkers side by side in one state, and what may happen to them."""

from collections.abc import Callable, Hashable, Iterator
from itertools import product

from pagetwin.conformance.checkers.all import RunningJudge
from pagetwin.conformance.comparison import Comparison
from pagetwin.conformance.exploration.actions import (
    Abort,
    Action,
    Close,
    Plan,
    Preempt,
    Reset,
    Submit,
    request_of,
    submissions,
)
from pagetwin.conformance.exploration.canonical import state_key
from pagetwin.conformance.exploration.scope import EOS, Scope
from pagetwin.conformance.lockstep import refusal
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.waiting_line import stands_before
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import sequence_id
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import Counters, SteppingScheduler, StepPlan, StepResult
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    PlanRecord,
    PreemptRecord,
    Record,
    RefuseRecord,
    ResetRecord,
    ResultRecord,
    SubmitRecord,
)
from pagetwin.simulator.replica import Replica

MakeScheduler = Callable[[CacheConfig, SchedulerConfig], SteppingScheduler]


class World:
    """One state of a scope. `do` takes it to the next; `actions` are those that may come next.

    Everything is judged as it happens: the two sides' answers are compared, the checkers see each
    record, and both sides recount their books.
    """

    def __init__(
        self, scope: Scope, left: MakeScheduler = Scheduler, right: MakeScheduler = Replica
    ) -> None:
        self.left = left(scope.cache, scope.scheduler)
        self.right = right(scope.cache, scope.scheduler)
        self.judge = RunningJudge()
        self.judge.feed(HeaderRecord(cache=scope.cache, scheduler=scope.scheduler))
        self.num_submitted = 0
        self.num_plans = 0
        self.in_flight: list[tuple[StepPlan, StepPlan, tuple[str, ...]]] = []
        """The left's plan, the right's, and the sequences that are due a token."""
        self.books = self.left.counters()
        """The left's counters after the last event."""
        self.passed_over = False
        """Whether the last event was a plan that begins a request before one that came earlier."""

    def key(self, scope: Scope) -> Hashable:
        """Equal for worlds that go on alike, but for the steps that are left."""
        due = tuple(len(names) for _, _, names in self.in_flight)
        left = scope.max_requests - self.num_submitted
        return left, due, state_key(self.left, self.right)

    def actions(self, scope: Scope) -> Iterator[Action]:
        """What may happen now; first a reset, which mostly changes nothing, and that is judged."""
        if scope.resets:
            yield Reset()
        may_plan = len(self.in_flight) <= scope.scheduler.async_scheduling
        if may_plan and self.num_plans < scope.max_steps and self.left.has_unfinished_requests():
            yield Plan()
        if self.in_flight:
            yield from self._closings(scope)
        if self.num_submitted < scope.max_requests:
            yield from submissions(scope, self._texts())
        if scope.aborts:
            for name in self._live():
                yield Abort(name)
        if scope.preemptions:
            for name in self._live():
                yield Preempt(name)

    def do(self, action: Action, scope: Scope, comparison: Comparison) -> list[Violation]:
        """Does it on both sides; what is wrong with it. Raises DifferenceFound where they differ,
        with the comparison's report."""
        comparison.where = f"after {self.num_plans} plans"
        record: Record | None
        match action:
            case Submit():
                record = self._submit(action, scope, comparison)
            case Abort(request_id):
                found = self.left.abort_request(request_id)
                comparison.equal("abort", found, self.right.abort_request(request_id))
                counters = self._counters(comparison)
                record = AbortRecord(request_id=request_id, found=found, counters=counters)
            case Preempt(request_id):
                found = self.left.preempt_request(request_id)
                comparison.equal("preempt", found, self.right.preempt_request(request_id))
                counters = self._counters(comparison)
                record = PreemptRecord(request_id=request_id, found=found, counters=counters)
            case Reset():
                done = self.left.reset_prefix_cache()
                comparison.equal("reset", done, self.right.reset_prefix_cache())
                record = ResetRecord(done=done, counters=self._counters(comparison))
            case Plan():
                record = self._plan(comparison)
            case Close():
                record = self._close(action, comparison)
        found_wrong = self.judge.feed(record) if record is not None else self._stuck()
        self.passed_over = (
            not found_wrong and isinstance(record, PlanRecord) and self._passes_over(record.plan)
        )
        return found_wrong + self._recount()

    def _passes_over(self, plan: StepPlan) -> bool:
        ledger = self.judge.ledger
        assert ledger is not None
        policy, waiting = ledger.scheduler.policy, ledger.in_state("waiting")
        begun = [ledger.sequences[sequence_id(new.request_id, 0)] for new in plan.new_requests]
        return any(stands_before(early, late, policy) for late in begun for early in waiting)

    def _submit(self, action: Submit, scope: Scope, comparison: Comparison) -> Record:
        request = request_of(action, self.num_submitted, scope)
        self.num_submitted += 1
        left, right = refusal(self.left, request), refusal(self.right, request)
        comparison.equal("submit", left is not None, right is not None)
        counters = self._counters(comparison)
        if left is not None:
            return RefuseRecord(request=request, error=left)
        return SubmitRecord(request=request, counters=counters)

    def _plan(self, comparison: Comparison) -> Record | None:
        left, right = self.left.schedule(), self.right.schedule()
        comparison.plans(left, right)
        counters = self._counters(comparison)
        if left is None or right is None:
            return None
        tables = comparison.block_tables(left, self.left.block_table, self.right.block_table)
        self.num_plans += 1
        self.in_flight.append((left, right, self._due(left)))
        return PlanRecord(plan=left, counters=counters, block_tables=tables)

    def _due(self, plan: StepPlan) -> tuple[str, ...]:
        """The sequences that are due a token: all samples of a group that forks in this step."""
        assert self.judge.ledger is not None
        due: list[str] = []
        for entry in plan.scheduled:
            if entry.samples:
                request_id, _, index = entry.seq_id.rpartition("/")
                sequence = self.judge.ledger.sequences[entry.seq_id]
                samples = range(sequence.weight) if sequence.grouped else (int(index),)
                due += [sequence_id(request_id, sample) for sample in samples]
        return tuple(due)

    def _close(self, action: Close, comparison: Comparison) -> Record:
        left, right, _ = self.in_flight.pop(0)
        sampled: dict[str, int] = {}
        failed: dict[str, str] = {}
        for seq_id, ending in zip(action.due, action.endings, strict=True):
            if ending == "fail":
                failed[seq_id] = "made to fail"
            else:
                sampled[seq_id] = EOS if ending == "stop" else int(seq_id.rpartition("/")[2])
        result = StepResult(step=left.step, sampled=sampled, failed=failed)
        update = self.left.update(left, result)
        comparison.updates(update, self.right.update(right, result))
        return ResultRecord.of(result, update, self._counters(comparison))

    def _closings(self, scope: Scope) -> Iterator[Close]:
        assert self.judge.ledger is not None
        ledger, (_, _, due) = self.judge.ledger, self.in_flight[0]
        choices: list[tuple[str, ...]] = []
        for seq_id in due:
            request_id = seq_id.rpartition("/")[0]
            if not ledger.samples_of(request_id):
                choices.append(("go",))  # It was aborted: nobody looks at its token.
                continue
            choices.append(("go", *(["stop"] * scope.early_ends), *(["fail"] * scope.failures)))
        return (Close(due, endings) for endings in product(*choices))

    def _stuck(self) -> list[Violation]:
        """No plan: there must be a step in flight to wait for (docs/policy.md P2.6)."""
        if self.in_flight or not self.left.has_unfinished_requests():
            return []
        message = "nothing is planned, though requests live and no step is in flight"
        return [violation("sched.progress", self.num_plans, message)]

    def _recount(self) -> list[Violation]:
        for name, side in (("left", self.left), ("right", self.right)):
            recount: Callable[[], None] | None = getattr(side, "check_invariants", None)
            try:
                if recount is not None:
                    recount()
            except AssertionError as error:
                return [
                    violation(
                        "kv.conservation", self.num_plans, f"the {name} miscounts", books=error
                    )
                ]
        return []

    def _counters(self, comparison: Comparison) -> Counters:
        self.books = self.left.counters()
        comparison.counters("an event", self.books, self.right.counters())
        return self.books

    def _live(self) -> list[str]:
        assert self.judge.ledger is not None
        live = (seq.request.request_id for seq in self.judge.ledger.sequences.values())
        return list(dict.fromkeys(live))

    def _texts(self) -> list[tuple[int, ...]]:
        assert self.judge.ledger is not None
        ledger = self.judge.ledger
        return [tuple(seq.tokens) for seq in (*ledger.ended.values(), *ledger.sequences.values())]
