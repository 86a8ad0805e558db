"""A session over any scheduler and executor, with every decision under the driver's control."""

from collections import Counter, deque
from collections.abc import Callable, Sequence

from pagetwin.conformance.adapters.observing import observe, split_sequence_id
from pagetwin.conformance.adapters.protocol import EngineInfo, EngineTimeout
from pagetwin.conformance.adapters.watchdog import Deadline
from pagetwin.conformance.observation import AnyObservation
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import RequestError
from pagetwin.engine.request import Request
from pagetwin.engine.step import Executor, SteppingScheduler, StepPlan, StepResult
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


class SchedulerSession:
    """Drives a scheduler and an executor, and writes down what happens; a SteppingSession and a
    PreemptingSession."""

    def __init__(
        self,
        info: EngineInfo,
        cache: CacheConfig,
        limits: SchedulerConfig,
        scheduler: SteppingScheduler,
        executor: Executor,
    ) -> None:
        self.scheduler = scheduler
        self._info = info
        self._executor = executor
        self._asynchronous = limits.async_scheduling
        self._history = HistoryWriter(keep=True)
        self._in_flight: deque[tuple[StepPlan, StepResult]] = deque()
        self._hang_ups = HangUps()
        self._history.write(HeaderRecord(cache=cache, scheduler=limits, engine=info.name))

    def submit(self, request: Request, *, cancel_after: int | None = None) -> None:
        try:
            self.scheduler.add_request(request)
        except RequestError as error:
            self._history.write(RefuseRecord(request=request, error=str(error)))
            return
        counters = self.scheduler.counters()
        self._history.write(SubmitRecord(request=request, counters=counters))
        self._hang_ups.expect(request.request_id, cancel_after, self.cancel)

    def cancel(self, request_id: str) -> None:
        found = self.scheduler.abort_request(request_id)
        counters = self.scheduler.counters()
        self._history.write(AbortRecord(request_id=request_id, found=found, counters=counters))

    def force_preempt(self, request_id: str) -> bool:
        found = self.scheduler.preempt_request(request_id)
        counters = self.scheduler.counters()
        self._history.write(PreemptRecord(request_id=request_id, found=found, counters=counters))
        return found

    def reset_prefix_cache(self) -> bool:
        done = self.scheduler.reset_prefix_cache()
        self._history.write(ResetRecord(done=done, counters=self.scheduler.counters()))
        return done

    def has_unfinished_requests(self) -> bool:
        return self.scheduler.has_unfinished_requests()

    def start_step(self) -> bool:
        plan = self.scheduler.schedule()
        if plan is None:
            return False
        tables = {one.seq_id: self.scheduler.block_table(one.seq_id) for one in plan.scheduled}
        counters = self.scheduler.counters()
        self._history.write(PlanRecord(plan=plan, counters=counters, block_tables=tables))
        self._in_flight.append((plan, self._executor.execute(plan)))
        return True

    def finish_step(self) -> bool:
        if not self._in_flight:
            return False
        plan, result = self._in_flight.popleft()
        update = self.scheduler.update(plan, result)
        self._history.write(ResultRecord.of(result, update, self.scheduler.counters()))
        self._hang_ups.see(result.sampled, self.cancel)
        return True

    def run(self, timeout_s: float) -> None:
        deadline = Deadline(timeout_s)
        while self.has_unfinished_requests():
            deadline.check(self._info.name)
            started = self.start_step()
            if started and self._asynchronous and len(self._in_flight) == 1:
                self.start_step()
            if not self.finish_step() and not started:
                raise EngineTimeout(
                    f"{self._info.name}: requests live, nothing is in flight, and the scheduler "
                    "plans no step; it would wait for ever"
                )

    def observations(self) -> Sequence[AnyObservation]:
        return [self._info.opened(), *observe(self._history.records)]

    def records(self) -> Sequence[Record]:
        return self._history.records

    def close(self) -> None:
        """Nothing is held."""


class HangUps:
    """Clients that give up after so many tokens of their first sample."""

    def __init__(self) -> None:
        self._patience: dict[str, int] = {}
        self._seen: Counter[str] = Counter()

    def expect(
        self, request_id: str, cancel_after: int | None, cancel: Callable[[str], None]
    ) -> None:
        """Notes a submitted request; gives it up at once if its client has no patience at all."""
        if cancel_after == 0:
            cancel(request_id)
        elif cancel_after is not None:
            self._patience[request_id] = cancel_after

    def see(self, sampled: dict[str, int], cancel: Callable[[str], None]) -> None:
        """Counts a step's tokens, and cancels what has now waited long enough."""
        if not self._patience:
            return
        for seq_id in sampled:
            request_id, index = split_sequence_id(seq_id)
            if index == 0 and request_id in self._patience:
                self._seen[request_id] += 1
                if self._seen[request_id] >= self._patience[request_id]:
                    del self._patience[request_id]
                    cancel(request_id)
