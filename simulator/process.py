"""Decides when things happen: a replica stepping in virtual time inside a SimPy process.

Virtual seconds are those of the requests' `arrival_s`. A step takes what the cost model says;
planning and closing take none. With asynchronous scheduling the next step is planned as the
one in flight starts, as an engine does that hides its planning behind the device.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import partial

import msgspec
import simpy

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError, RequestError
from pagetwin.engine.request import Request
from pagetwin.engine.step import (
    Executor,
    SteppingScheduler,
    StepPlan,
    StepTimings,
)
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    HistoryWriter,
    PlanRecord,
    RefuseRecord,
    ResultRecord,
    SubmitRecord,
)
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.timings import SimulationResult, Timekeeper
from pagetwin.simulator.token_source import ScriptedTokens

Events = Generator[simpy.Event, None, None]


class ReplicaProcess:
    """One stepping scheduler that lives in a SimPy environment.

    Other processes call `submit` and `abort` at any virtual time; they take effect at once,
    between plans (P1.5). Several of these may share an environment.
    """

    def __init__(
        self,
        env: simpy.Environment,
        scheduler: SteppingScheduler,
        cost_model: CostModel,
        tokens: Executor,
        history: HistoryWriter | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.times = Timekeeper()
        self._env = env
        self._cost_model = cost_model
        self._tokens = tokens
        self._history = history
        self._wake = env.event()
        env.process(self._run())

    def submit(self, request: Request) -> bool:
        """Adds a request; False if it was refused, with the reason in `times.refused`."""
        try:
            self.scheduler.add_request(request)
        except RequestError as error:
            self.times.refuse(request, str(error))
            if self._history is not None:
                self._history.write(RefuseRecord(request=request, error=str(error)))
            return False
        self.times.submit(request)
        if self._history is not None:
            counters = self.scheduler.counters()
            self._history.write(
                SubmitRecord(request=request, counters=counters, time_s=self._env.now)
            )
        self._wake_up()
        return True

    def abort(self, request_id: str) -> bool:
        found = self.scheduler.abort_request(request_id)
        if found:
            self.times.abort(request_id, self._env.now)
        if self._history is not None:
            self._history.write(
                AbortRecord(
                    request_id=request_id,
                    found=found,
                    counters=self.scheduler.counters(),
                    time_s=self._env.now,
                )
            )
        # Blocks that it frees may let a waiting request in.
        self._wake_up()
        return found

    def _wake_up(self) -> None:
        if not self._wake.triggered:
            self._wake.succeed()

    def _run(self) -> Events:
        in_flight: deque[StepPlan] = deque()
        while True:
            if not in_flight and not self._plan(in_flight):
                self._wake = self._env.event()
                yield self._wake
                continue
            # The oldest step starts now; a scheduler that steps asynchronously plans one more.
            self._plan(in_flight)
            plan = in_flight[0]
            duration = self._cost_model.seconds(plan)
            yield self._env.timeout(duration)
            self._close(in_flight.popleft(), duration)

    def _plan(self, in_flight: deque[StepPlan]) -> bool:
        plan = self.scheduler.schedule()
        if plan is None:
            return False
        in_flight.append(plan)
        self.times.plan(plan, self._env.now)
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
                    time_s=self._env.now,
                )
            )
        return True

    def _close(self, plan: StepPlan, duration: float) -> None:
        result = self._tokens.execute(plan)
        update = self.scheduler.update(plan, result)
        self.times.close(result, update, now=self._env.now, duration=duration)
        if self._history is not None:
            timed = msgspec.structs.replace(result, timings=StepTimings(execute_s=duration))
            counters = self.scheduler.counters()
            self._history.write(ResultRecord.of(timed, update, counters, time_s=self._env.now))


def simulate(
    requests: Iterable[Request],
    *,
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    cost_model: CostModel,
    tokens: Executor | None = None,
    aborts: Mapping[str, float] | None = None,
    history: HistoryWriter | None = None,
) -> SimulationResult:
    """Runs the requests to their end on one replica, and returns what they saw.

    Requests arrive at their `arrival_s` (not negative; ConfigError otherwise); those of one
    instant in the order given. `aborts` maps request ids to virtual seconds; at one instant an
    arrival comes before an abort, and both before the end of a step that began earlier.
    `tokens` is `ScriptedTokens` if not given. `history` gets the records, and stays open.
    """
    env = simpy.Environment()
    if history is not None:
        history.write(HeaderRecord(cache=cache, scheduler=scheduler, engine="pagetwin.simulator"))
    replica = ReplicaProcess(
        env,
        Replica(cache, scheduler),
        cost_model,
        tokens or ScriptedTokens(max_model_len=scheduler.max_model_len),
        history,
    )
    for request in requests:
        _check_time(f"request {request.request_id!r} arrives", request.arrival_s)
        env.process(_at(env, request.arrival_s, partial(replica.submit, request)))
    for request_id, abort_s in (aborts or {}).items():
        _check_time(f"request {request_id!r} is aborted", abort_s)
        env.process(_at(env, abort_s, partial(replica.abort, request_id)))
    env.run()
    return replica.times.result(replica.scheduler.counters())


def _at(env: simpy.Environment, time_s: float, action: Callable[[], bool]) -> Events:
    yield env.timeout(time_s)
    action()


def _check_time(what: str, time_s: float) -> None:
    if not 0 <= time_s < float("inf"):
        raise ConfigError(f"{what} at {time_s!r} s; virtual time starts at 0, shift the times")
