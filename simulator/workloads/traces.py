"""Decides the requests that a recorded trace becomes: its lengths, its times, its sharing."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.workloads.columns import Columns
from pagetwin.simulator.workloads.content import Kind, Segment, tokens_of
from pagetwin.simulator.workloads.history_trace import is_history, recorded_requests
from pagetwin.simulator.workloads.trace_files import (
    HASHED_TOKENS,
    TraceEntry,
    check_trace_path,
    read_trace,
)
from pagetwin.simulator.workloads.workload import Arrival, OpenStream, plain_request


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of a trace file, or of a history of an engine; the same for every seed.

    Outputs end at their recorded length. Equal prefix hashes become equal tokens; prompts without
    hashes share nothing. A history's prompts are its own tokens. The file is read as the
    simulation goes.
    """

    path: Path
    columns: Columns = Columns()
    speed: float = 1.0
    """Arrivals come this many times faster than they were recorded."""
    num_requests: int | None = None
    """The first so many; None: all."""

    def __post_init__(self) -> None:
        if not 0 < self.speed < float("inf"):
            raise ConfigError(f"speed={self.speed!r} is not a positive number; 2 is twice as fast")
        if self.num_requests is not None and self.num_requests < 1:
            raise ConfigError(f"requests={self.num_requests} is below 1; nothing would arrive")

    def begin(self, seed: int) -> OpenStream:
        check_trace_path(self.path)
        arrivals = self._recorded() if is_history(self.path) else self._made_up()
        return OpenStream(islice(arrivals, self.num_requests))

    def _recorded(self) -> Iterator[Arrival]:
        for number, request in enumerate(recorded_requests(self.path)):
            arrival_s = request.arrival_s / self.speed
            yield Arrival(msgspec.structs.replace(request, arrival_s=arrival_s), number)

    def _made_up(self) -> Iterator[Arrival]:
        sessions: dict[str, int] = {}
        for number, entry in enumerate(read_trace(self.path, self.columns)):
            request = plain_request(
                f"r{number:07}",
                tokens_of(_segments(entry, number)),
                entry.output_tokens,
                entry.arrival_s / self.speed,
            )
            session = number
            if entry.session is not None:
                session = sessions.setdefault(entry.session, len(sessions))
            yield Arrival(request, session)


def _segments(entry: TraceEntry, number: int) -> Iterator[Segment]:
    if not entry.prefix_hashes:
        yield Segment(Kind.OWN, number, entry.prompt_tokens)
    left = entry.prompt_tokens
    for name in entry.prefix_hashes:
        yield Segment(Kind.HASHED, name, min(left, HASHED_TOKENS))
        left -= HASHED_TOKENS
