"""Decides when things happen: a replica stepping in virtual time inside a SimPy process.

Virtual time is in ticks (`clock`), with tick 0 at second 0 of the requests' `arrival_s`. When a
step ends follows from what the cost model says of host and device (`step_clock`). With
asynchronous scheduling the next step is planned as the one in flight starts, as an engine does
that hides its planning behind the device.
"""

from collections import deque
from collections.abc import Generator
from typing import Protocol, runtime_checkable

import msgspec
import simpy

from pagetwin.engine.errors import RequestError
from pagetwin.engine.request import Request
from pagetwin.engine.step import (
    Executor,
    SteppingScheduler,
    StepPlan,
    StepTimings,
)
from pagetwin.engine.trace import (
    AbortRecord,
    HistoryWriter,
    PlanRecord,
    RefuseRecord,
    ResultRecord,
    SubmitRecord,
)
from pagetwin.simulator.clock import to_seconds
from pagetwin.simulator.cost_model import CostModel, composition
from pagetwin.simulator.replica_interface import ReplicaLoad
from pagetwin.simulator.step_clock import StepClock
from pagetwin.simulator.timekeeper import Finished, FirstToken, Timekeeper
from pagetwin.simulator.timings import SimulationResult

Events = Generator[simpy.Event, None, None]


@runtime_checkable
class CountsRepeats(Protocol):
    """A scheduler that knows what its running sequences share."""

    @property
    def num_repeated_tokens(self) -> int:
        """See `cost_model.composition`."""
        ...


class ReplicaProcess:
    """One stepping scheduler that lives in a SimPy environment; a `SimulatedReplica`.

    Other processes call `submit` and `abort` at any virtual time; they take effect at once,
    between plans (P1.5). Several of these may share an environment. `env.now` is in ticks.
    """

    def __init__(
        self,
        env: simpy.Environment,
        scheduler: SteppingScheduler,
        cost_model: CostModel,
        tokens: Executor,
        history: HistoryWriter | None = None,
        *,
        on_first_token: FirstToken | None = None,
        on_finish: Finished | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.times = Timekeeper(on_first_token, on_finish)
        self._env = env
        self._cost_model = cost_model
        self._clock = StepClock(cost_model)
        self._repeats = scheduler if isinstance(scheduler, CountsRepeats) else None
        self._tokens = tokens
        self._history = history
        self._num_usable_blocks = scheduler.counters().num_free_blocks
        self._in_flight: deque[StepPlan] = deque()
        self._duration = 0
        self._is_stopped = False
        self._wake = env.event()
        self._process = env.process(self._run())

    def submit(self, request: Request) -> bool:
        """Adds a request; False if it was refused, with the reason in `times.refused`."""
        try:
            self.scheduler.add_request(request)
        except RequestError as error:
            self.times.refuse(request, str(error))
            if self._history is not None:
                self._history.write(RefuseRecord(request=request, error=str(error)))
            return False
        self.times.submit(request, self._now)
        if self._history is not None:
            counters = self.scheduler.counters()
            self._history.write(
                SubmitRecord(request=request, counters=counters, time_s=to_seconds(self._now))
            )
        self._wake_up()
        return True

    def abort(self, request_id: str) -> bool:
        found = self.scheduler.abort_request(request_id)
        if found:
            self.times.abort(request_id, self._now)
        if self._history is not None:
            self._history.write(
                AbortRecord(
                    request_id=request_id,
                    found=found,
                    counters=self.scheduler.counters(),
                    time_s=to_seconds(self._now),
                )
            )
        # Blocks that it frees may let a waiting request in.
        self._wake_up()
        self.times.tell()
        return found

    def load(self) -> ReplicaLoad:
        counters = self.scheduler.counters()
        return ReplicaLoad(
            num_outstanding=self.times.num_outstanding,
            num_waiting=counters.num_waiting + counters.num_swapped,
            num_running=counters.num_running,
            num_queued_tokens=self.times.num_queued_tokens,
            num_free_blocks=counters.num_free_blocks,
            num_usable_blocks=self._num_usable_blocks,
        )

    def catch_up(self) -> None:
        """Reports what has happened up to now; nothing, where that was reported when it did."""

    def report_at_once(self) -> None:
        """From now on reports come when they happen, where that was put off (`CountedProcess`)."""

    def result(self) -> SimulationResult:
        """What it has done so far."""
        return self.times.result(self.scheduler.counters())

    def stop(self) -> tuple[Request, ...]:
        """The replica fails; see `SimulatedReplica.stop`."""
        self._is_stopped = True
        self._wake_up()
        return self.times.outstanding

    @property
    def _now(self) -> int:
        return int(self._env.now)

    def _num_repeated_tokens(self) -> int:
        return 0 if self._repeats is None else self._repeats.num_repeated_tokens

    def _wake_up(self) -> None:
        if not self._wake.triggered:
            self._wake.succeed()

    def _run(self) -> Events:
        while not self._is_stopped:
            now = self._now
            if not self._begin_step(now):
                self._wake = self._env.event()
                yield self._wake
                continue
            yield self._env.timeout(self._duration)
            if not self._is_stopped:
                self._end_step(now + self._duration)

    def _begin_step(self, now: int) -> bool:
        """Starts the oldest planned step, which takes `_duration`; False if there is none.

        A scheduler that steps asynchronously plans one more.
        """
        if not self._in_flight and not self._plan(now):
            return False
        self._plan(now)
        self._duration = self._clock.next_end(now) - now
        return True

    def _plan(self, now: int) -> bool:
        plan = self.scheduler.schedule()
        if plan is None:
            return False
        self._in_flight.append(plan)
        self._clock.launch(composition(plan, self._num_repeated_tokens()), now)
        self.times.plan(plan, now)
        if self._history is not None:
            tables = {}
            if self._history.with_block_tables:
                ids = [row.seq_id for row in plan.scheduled]
                tables = {seq_id: self.scheduler.block_table(seq_id) for seq_id in ids}
            self._history.write(
                PlanRecord(
                    plan=plan,
                    counters=self.scheduler.counters(),
                    block_tables=tables,
                    time_s=to_seconds(now),
                )
            )
        return True

    def _end_step(self, now: int) -> None:
        plan = self._in_flight.popleft()
        self._clock.close()
        result = self._tokens.execute(plan)
        update = self.scheduler.update(plan, result)
        self.times.close(result, update, now=now, duration=self._duration)
        if self._history is not None:
            timings = StepTimings(execute_s=to_seconds(self._duration))
            timed = msgspec.structs.replace(result, timings=timings)
            counters = self.scheduler.counters()
            self._history.write(ResultRecord.of(timed, update, counters, time_s=to_seconds(now)))
        self.times.tell()
