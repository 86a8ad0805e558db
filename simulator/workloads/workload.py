"""Decides what a cluster may ask of a workload: arrivals in order, and what an end brings."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Protocol

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """A request that arrives at its `arrival_s`, and whose it is."""

    request: Request
    session: int
    """Requests of one user or conversation share it; routers may keep them together."""


class Stream(Protocol):
    """A workload under way, for one seed."""

    @property
    def reacts(self) -> bool:
        """Whether the end of a request may bring another one."""
        ...

    def arrivals(self) -> Iterator[Arrival]:
        """The requests that come whatever happens, by `arrival_s`; to be drawn lazily, once."""
        ...

    def follow_up(self, request_id: str, now_s: float) -> Arrival | None:
        """What the end of a request at `now_s`, good or bad, brings: a request that arrives then or
        later, or none. To be asked once for every request that ends."""
        ...


class Workload(Protocol):
    """A description that begins the same stream each time for the same seed."""

    def begin(self, seed: int) -> Stream: ...


class OpenStream:
    """Arrivals that nothing can hold up."""

    reacts = False

    def __init__(self, arrivals: Iterator[Arrival]) -> None:
        self._arrivals = arrivals

    def arrivals(self) -> Iterator[Arrival]:
        return self._arrivals

    def follow_up(self, request_id: str, now_s: float) -> Arrival | None:
        return None


class Listed:
    """Given requests, each a session of its own, whatever the seed; sorted by arrival_s.

    They are iterated over once for each `begin`, so a generator is good for one.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = requests

    def begin(self, seed: int) -> OpenStream:
        return OpenStream(Arrival(one, place) for place, one in enumerate(self._requests))


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """How long a workload goes on: until either limit. ConfigError if there is none."""

    num_requests: int | None = None
    duration_s: float | None = None
    """Requests arrive before this."""

    def __post_init__(self) -> None:
        if self.num_requests is None and self.duration_s is None:
            raise ConfigError("the workload has no end; give requests=N or duration=SECONDS")
        if self.num_requests is not None and self.num_requests < 1:
            raise ConfigError(f"requests={self.num_requests} is below 1; nothing would arrive")
        if self.duration_s is not None and not 0 < self.duration_s < float("inf"):
            raise ConfigError(f"duration={self.duration_s!r} is not a positive number of seconds")

    def admits(self, number: int, arrival_s: float) -> bool:
        """Whether the request of that number (from 0), which arrives then, is within."""
        within = self.num_requests is None or number < self.num_requests
        return within and (self.duration_s is None or arrival_s < self.duration_s)


def plain_request(
    request_id: str, prompt: tuple[int, ...], num_output_tokens: int, arrival_s: float
) -> Request:
    """A request of one sample that ends after exactly that many tokens."""
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling_params=_params(num_output_tokens),
        arrival_s=arrival_s,
    )


@lru_cache(maxsize=65536)
def _params(num_output_tokens: int) -> SamplingParams:
    """Shared by requests of one length, since checking parameters costs more than the rest."""
    return SamplingParams(max_tokens=num_output_tokens, ignore_eos=True)
