"""Decides how requests reach a replica that is alone: at their arrival, lazily, in order."""

import heapq
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import simpy

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.request import Request
from pagetwin.engine.step import Executor
from pagetwin.engine.trace import HeaderRecord, HistoryWriter
from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.fast_forward.process import FastForwardProcess
from pagetwin.simulator.process import ReplicaProcess
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.replica_interface import SimulatedReplica
from pagetwin.simulator.timings import Finished, SimulationResult
from pagetwin.simulator.token_source import ScriptedTokens


class At(simpy.Event):
    """An event at a tick, before the ends of steps and all other timeouts of that tick."""

    def __init__(self, env: simpy.Environment, ticks: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, simpy.events.URGENT, ticks - env.now)


class Occasion(NamedTuple):
    """An arrival or an abort. At one tick arrivals come first, in the order given."""

    ticks: int
    is_abort: bool
    subject: Any
    """The `Request`, or the id of the one to abort."""


def simulate_replica(
    requests: Iterable[Request],
    *,
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    cost_model: CostModel,
    tokens: Executor | None = None,
    aborts: Mapping[str, float] | None = None,
    history: HistoryWriter | None = None,
    on_finish: Finished | None = None,
    fast_forward: bool = False,
) -> SimulationResult:
    """Runs the requests to their end on one replica.

    Requests are drawn when their time has come; they arrive at their `arrival_s`, which may not
    be negative or go back (ConfigError). `aborts` maps request ids to virtual seconds; at one
    instant an arrival comes before an abort, and both before the end of a step that began
    earlier. `tokens` is `ScriptedTokens` if not given. `history` gets the records, and stays
    open. With `on_finish`, timings go there as requests end, and are not kept.

    With `fast_forward` the stretches in which requests only decode are jumped over
    (`fast_forward.process`), where the tokens are scripted; nothing else differs.
    """
    env = simpy.Environment()
    if history is not None:
        history.write(HeaderRecord(cache=cache, scheduler=scheduler, engine="pagetwin.simulator"))
    twin = Replica(cache, scheduler)
    script = tokens or ScriptedTokens(max_model_len=scheduler.max_model_len)
    replica: ReplicaProcess
    if fast_forward and isinstance(script, ScriptedTokens):
        replica = FastForwardProcess(env, twin, cost_model, script, history, on_finish=on_finish)
    else:
        replica = ReplicaProcess(env, twin, cost_model, script, history, on_finish=on_finish)
    env.process(feed(env, replica, occasions(requests, aborts or {})))
    env.run()
    return replica.times.result(replica.scheduler.counters())


def occasions(requests: Iterable[Request], aborts: Mapping[str, float]) -> Iterator[Occasion]:
    """Arrivals and aborts by time; ConfigError on a time that is negative or goes back."""
    ending = [
        Occasion(_ticks(f"request {request_id!r} is aborted", abort_s), True, request_id)
        for request_id, abort_s in aborts.items()
    ]
    ending.sort(key=_order)
    return heapq.merge(_arrivals(requests), ending, key=_order)


def _arrivals(requests: Iterable[Request]) -> Iterator[Occasion]:
    latest = 0
    for request in requests:
        ticks = _ticks(f"request {request.request_id!r} arrives", request.arrival_s)
        if ticks < latest:
            raise ConfigError(
                f"request {request.request_id!r} arrives at {request.arrival_s} s, before the one "
                "that was given before it; sort the requests by arrival_s"
            )
        latest = ticks
        yield Occasion(ticks, False, request)


def _order(occasion: Occasion) -> tuple[int, bool]:
    return occasion.ticks, occasion.is_abort


def feed(
    env: simpy.Environment, replica: SimulatedReplica, due: Iterator[Occasion]
) -> Generator[simpy.Event, None, None]:
    """A process that submits and aborts at their time."""
    for ticks, is_abort, subject in due:
        if ticks > env.now:
            yield At(env, ticks)
        if is_abort:
            replica.abort(subject)
        else:
            replica.submit(subject)


def _ticks(what: str, time_s: float) -> int:
    if not 0 <= time_s < float("inf"):
        raise ConfigError(f"{what} at {time_s!r} s; virtual time starts at 0, shift the times")
    return to_ticks(time_s)
