"""Decides the life of one replica's place: it starts, serves, drains, fails and comes back.

    start          ready            drain
OFF -----> STARTING -----> SERVING -------> DRAINING -> OFF, when it has no request left
              ^               |   <-------     |
              |  (repair)     | fail   undrain | fail
              +---- DOWN <----+----------------+
"""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from pagetwin.engine.request import Request
from pagetwin.engine.step import Counters
from pagetwin.simulator.cluster.description import Pool
from pagetwin.simulator.process import ReplicaProcess
from pagetwin.simulator.replica_interface import ReplicaLoad
from pagetwin.simulator.timings import SimulationResult

MakeReplica = Callable[["Node"], ReplicaProcess]


class State(Enum):
    OFF = "off"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    DOWN = "down"


class Spell(NamedTuple):
    """Ticks from one change to the next."""

    state: State
    start: int
    end: int


class Node:
    """A place for a replica, and the books of all replicas that were there."""

    def __init__(self, number: int, pool: Pool, make_replica: MakeReplica) -> None:
        self.number = number
        self.pool = pool
        self.state = State.OFF
        self.generation = 0
        """Goes up when a replica is lost: what was begun before is void."""
        self.num_outstanding = 0
        """Requests that it was given and that have not left it."""
        self.num_transfers = 0
        """Finished prefills whose K/V it still holds, since they are on their way."""
        self.will_return = True
        """Whether it comes back where it is down."""
        self.spells: list[Spell] = []
        self.finished: list[SimulationResult] = []
        """Of the replicas that are gone."""
        self._since = 0
        self._make_replica = make_replica
        self._replica: ReplicaProcess | None = None

    @property
    def is_routable(self) -> bool:
        return self.state is State.SERVING

    def submit(self, request: Request) -> str | None:
        """Gives it a request; returns the reason if it can never serve it."""
        assert self.is_routable
        assert self._replica is not None
        if not self._replica.submit(request):
            return self._replica.times.refused.pop(request.request_id)
        self.num_outstanding += 1
        return None

    def left(self) -> None:
        """A request has left it."""
        self.num_outstanding -= 1

    def load(self) -> ReplicaLoad:
        assert self._replica is not None
        return self._replica.load()

    def catch_up(self) -> None:
        """Reports what its replica has done up to now, if that was put off."""
        if self._replica is not None:
            self._replica.catch_up()

    def report_at_once(self) -> None:
        """From now on nothing is put off."""
        if self._replica is not None:
            self._replica.report_at_once()

    def checked_load(self) -> ReplicaLoad | None:
        """The replica's load, if there is one; its books agree with the gateway's."""
        if self._replica is None:
            return None
        load = self.load()
        if load.num_outstanding != self.num_outstanding:
            raise AssertionError(
                f"node {self.number} has {load.num_outstanding} requests, by the gateway's "
                f"books {self.num_outstanding}"
            )
        return load

    def start(self, now: int) -> None:
        """Begins to start; whoever calls it calls `ready` later."""
        assert self.state in (State.OFF, State.DOWN)
        self._become(State.STARTING, now)

    def ready(self, now: int) -> None:
        """Serves from now on, with an empty memory."""
        assert self.state in (State.OFF, State.DOWN, State.STARTING)
        self._become(State.SERVING, now)
        self._replica = self._make_replica(self)

    def drain(self, now: int) -> None:
        """Takes no more requests, and is off when it has none."""
        assert self.state is State.SERVING
        self._become(State.DRAINING, now)
        self.turn_off_if_idle(now)

    def undrain(self, now: int) -> None:
        assert self.state is State.DRAINING
        self._become(State.SERVING, now)

    def turn_off_if_idle(self, now: int) -> None:
        is_idle = self.num_outstanding == 0 and self.num_transfers == 0
        if self.state is State.DRAINING and is_idle:
            self._lose_replica()
            self._become(State.OFF, now)

    def fail(self, now: int) -> tuple[Request, ...]:
        """Loses the replica; returns what it had under way, in the order of submission."""
        assert self.state in (State.SERVING, State.DRAINING)
        left = self._lose_replica()
        self.num_outstanding = self.num_transfers = 0
        self._become(State.DOWN, now)
        return left

    def off(self, now: int) -> None:
        """Is repaired, and not wanted."""
        assert self.state is State.DOWN
        self._become(State.OFF, now)

    def close(self, now: int) -> None:
        """The run is over."""
        if self._replica is not None:
            self._lose_replica()
        self._become(self.state, now)

    def counters(self) -> Counters:
        """Totals over all of its replicas; levels are the last one's."""
        totals = dict.fromkeys(Counters.__struct_fields__, 0)
        for result in self.finished:
            for name in totals:
                value = getattr(result.counters, name)
                totals[name] = value if name.startswith("num_") else totals[name] + value
        return Counters(**totals)

    def _lose_replica(self) -> tuple[Request, ...]:
        replica, self._replica = self._replica, None
        assert replica is not None
        left = replica.stop()
        result = replica.result()
        if not left and result.outstanding_ticks != result.sojourn_ticks:
            raise AssertionError(
                f"Little's law on node {self.number}: {result.outstanding_ticks} request ticks by "
                f"the number outstanding, {result.sojourn_ticks} by the requests' own times"
            )
        self.finished.append(result)
        self.generation += 1
        return left

    def _become(self, state: State, now: int) -> None:
        if now > self._since:
            self.spells.append(Spell(self.state, self._since, now))
        self.state, self._since = state, now
