"""Decides the requests of an open loop: arrivals and lengths drawn apart from each other."""

from collections.abc import Iterator
from itertools import repeat

import msgspec

from pagetwin.simulator.workloads.arrival_times import ArrivalTimes
from pagetwin.simulator.workloads.content import Kind, Segment, SystemPrompts, tokens_of
from pagetwin.simulator.workloads.draws import Purpose, generator
from pagetwin.simulator.workloads.lengths import Lengths
from pagetwin.simulator.workloads.workload import Arrival, Extent, OpenStream, plain_request


class OpenLoop(msgspec.Struct, frozen=True, kw_only=True):
    """Requests `r0000000`, `r0000001`, ... that share at most a system prompt."""

    arrivals: ArrivalTimes
    prompt: Lengths
    """Tokens of its own, behind the system prompt."""
    output: Lengths
    extent: Extent
    system: SystemPrompts | None = None

    def begin(self, seed: int) -> OpenStream:
        return OpenStream(self._arrivals(seed))

    def _arrivals(self, seed: int) -> Iterator[Arrival]:
        times = self.arrivals.times(seed)
        prompts = self.prompt.draws(generator(seed, Purpose.PROMPTS))
        outputs = self.output.draws(generator(seed, Purpose.OUTPUTS))
        systems = system_segments(self.system, seed)
        for number, arrival_s in enumerate(times):
            if not self.extent.admits(number, arrival_s):
                return
            own = Segment(Kind.OWN, number, next(prompts))
            request = plain_request(
                f"r{number:07}", tokens_of((*next(systems), own)), next(outputs), arrival_s
            )
            yield Arrival(request, number)


def system_segments(
    system: SystemPrompts | None, seed: int, index: int = 0
) -> Iterator[tuple[Segment, ...]]:
    """What stands before the prompts, endless: a system prompt each, or nothing."""
    if system is None:
        return repeat(())
    return ((segment,) for segment in system.draws(generator(seed, Purpose.FAMILIES, index)))
