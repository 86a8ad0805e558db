"""Decides what it means that a workload comes faster or slower than it was described."""

from collections.abc import Iterator

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.workloads.workload import Arrival, Stream, Workload


class Faster:
    """The same requests in the same order, `factor` times as fast.

    What is divided are the times of requests that come by themselves; thinking between the turns
    of a conversation takes as long as before.
    """

    def __init__(self, workload: Workload, factor: float) -> None:
        if not 0 < factor < float("inf"):
            raise ConfigError(
                f"load factor {factor!r} is not a positive number; 2 is twice as fast"
            )
        self._workload = workload
        self._factor = factor

    def begin(self, seed: int) -> "_FasterStream":
        return _FasterStream(self._workload.begin(seed), self._factor)


class _FasterStream:
    def __init__(self, stream: Stream, factor: float) -> None:
        self._stream = stream
        self._factor = factor

    @property
    def reacts(self) -> bool:
        return self._stream.reacts

    def arrivals(self) -> Iterator[Arrival]:
        for arrival in self._stream.arrivals():
            arrival_s = arrival.request.arrival_s / self._factor
            request = msgspec.structs.replace(arrival.request, arrival_s=arrival_s)
            yield Arrival(request, arrival.session)

    def follow_up(self, request_id: str, now_s: float) -> Arrival | None:
        return self._stream.follow_up(request_id, now_s)
