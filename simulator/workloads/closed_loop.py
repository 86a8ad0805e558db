"""Decides the requests of a closed loop: N users, each of whom waits for the answer and thinks."""

import math
from collections.abc import Iterator

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.workloads.arrival_times import think_times
from pagetwin.simulator.workloads.content import Kind, Segment, SystemPrompts, tokens_of
from pagetwin.simulator.workloads.draws import Purpose, generator
from pagetwin.simulator.workloads.lengths import Lengths
from pagetwin.simulator.workloads.open_loop import system_segments
from pagetwin.simulator.workloads.workload import Arrival, Extent, plain_request

MAX_USERS = 10**5


class ClosedLoop(msgspec.Struct, frozen=True, kw_only=True):
    """Users who each have one request under way, or think.

    The k-th request of user u is `u00u.k`, with the same lengths and the same pause before it
    whoever is served first. Users start after a first pause.
    """

    num_users: int
    think_s: float
    """Mean of the exponential pauses."""
    prompt: Lengths
    output: Lengths
    extent: Extent
    system: SystemPrompts | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_users <= MAX_USERS:
            raise ConfigError(f"users={self.num_users} is outside 1..{MAX_USERS}")
        if not (math.isfinite(self.think_s) and self.think_s >= 0):
            raise ConfigError(f"think={self.think_s!r} is not a number of seconds from 0 upwards")

    def begin(self, seed: int) -> "ClosedStream":
        return ClosedStream(self, seed)


class ClosedStream:
    """The users, and which request is whose."""

    reacts = True

    def __init__(self, loop: ClosedLoop, seed: int) -> None:
        self._users = [_User(loop, seed, number) for number in range(loop.num_users)]
        self._extent = loop.extent
        self._num_requests = 0
        self._owners: dict[str, _User] = {}

    def arrivals(self) -> Iterator[Arrival]:
        firsts = sorted((user.think(), user.number) for user in self._users)
        for arrival_s, number in firsts:
            arrival = self._request(self._users[number], arrival_s)
            if arrival is not None:
                yield arrival

    def follow_up(self, request_id: str, now_s: float) -> Arrival | None:
        user = self._owners.pop(request_id)
        return self._request(user, now_s + user.think())

    def _request(self, user: "_User", arrival_s: float) -> Arrival | None:
        if not self._extent.admits(self._num_requests, arrival_s):
            return None
        self._num_requests += 1
        arrival = user.request(arrival_s)
        self._owners[arrival.request.request_id] = user
        return arrival


class _User:
    def __init__(self, loop: ClosedLoop, seed: int, number: int) -> None:
        self.number = number
        self._num_users = loop.num_users
        self._num_requests = 0
        self._pauses = think_times(generator(seed, Purpose.THINKING, number), loop.think_s)
        self._prompts = loop.prompt.draws(generator(seed, Purpose.PROMPTS, number))
        self._outputs = loop.output.draws(generator(seed, Purpose.OUTPUTS, number))
        self._systems = system_segments(loop.system, seed, number)

    def think(self) -> float:
        return next(self._pauses)

    def request(self, arrival_s: float) -> Arrival:
        turn = self._num_requests
        self._num_requests += 1
        own = Segment(Kind.OWN, turn * self._num_users + self.number, next(self._prompts))
        tokens = tokens_of((*next(self._systems), own))
        name = f"u{self.number:05}.{turn:05}"
        return Arrival(plain_request(name, tokens, next(self._outputs), arrival_s), self.number)
