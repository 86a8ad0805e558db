"""Decides how requests reach a replica: at their arrival, lazily, in order."""

import heapq
import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import simpy

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.request import Request
from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.replica_interface import SimulatedReplica

LATEST_S = 8e6
"""Three months. 64 bits hold 9.2e6 s of ticks; what is left is for the last requests to end."""


class At(simpy.Event):
    """An event at a tick, before the ends of steps and all other timeouts of that tick."""

    def __init__(self, env: simpy.Environment, ticks: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, simpy.events.URGENT, ticks - env.now)


class Occasion(msgspec.Struct, frozen=True, gc=False):
    """An arrival or an abort. At one tick arrivals come first, in the order given."""

    ticks: int
    is_abort: bool
    subject: Any
    """The `Request`, or the id of the one to abort."""


def occasions(requests: Iterable[Request], aborts: Mapping[str, float]) -> Iterator[Occasion]:
    """Arrivals and aborts by time; ConfigError on a time that is negative or goes back."""
    ending = [
        Occasion(_ticks("request %r is aborted", request_id, abort_s), True, request_id)
        for request_id, abort_s in aborts.items()
    ]
    ending.sort(key=_order)
    arriving = _arrivals(requests)
    return heapq.merge(arriving, ending, key=_order) if ending else arriving


def _arrivals(requests: Iterable[Request]) -> Iterator[Occasion]:
    latest = 0
    for request in requests:
        latest = arrival_ticks(request, latest)
        yield Occasion(latest, False, request)


def arrival_ticks(request: Request, latest: int) -> int:
    """When a request arrives; ConfigError if that is before the start, or before `latest`."""
    ticks = _ticks("request %r arrives", request.request_id, request.arrival_s)
    if ticks < latest:
        raise ConfigError(
            f"request {request.request_id!r} arrives at {request.arrival_s} s, before the one "
            "that was given before it; sort the requests by arrival_s"
        )
    return ticks


def _order(occasion: Occasion) -> tuple[int, bool]:
    return occasion.ticks, occasion.is_abort


def feed(
    env: simpy.Environment, replica: SimulatedReplica, due: Iterator[Occasion]
) -> Generator[simpy.Event, None, None]:
    """A process that submits and aborts at their time."""
    for occasion in due:
        if occasion.ticks > env.now:
            yield At(env, occasion.ticks)
        bring(replica, occasion)


def bring(replica: SimulatedReplica, occasion: Occasion) -> None:
    """Submits or aborts, now."""
    if occasion.is_abort:
        replica.abort(occasion.subject)
    else:
        replica.submit(occasion.subject)


def _ticks(what: str, request_id: str, time_s: float) -> int:
    if not 0 <= time_s < math.inf:
        raise ConfigError(
            f"{what % request_id} at {time_s!r} s; virtual time starts at 0, shift the times"
        )
    if time_s > LATEST_S:
        raise ConfigError(
            f"{what % request_id} at {time_s:g} s, after {LATEST_S:g} s; simulate a shorter span"
        )
    return to_ticks(time_s)
