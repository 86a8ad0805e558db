"""Decides when steps end, while a host and a device take turns or work side by side.

A host launches the step that it has planned while the device computes the one before, and looks
for the end of that one only then. So a step that is long to launch delays the tokens of the one
before it, and one that the device is done with early waits for the host.
"""

from collections import deque

import msgspec

from pagetwin.simulator.cost_model import NO_HOST, CostModel, DecodeLine, StepComposition


class _Launched(msgspec.Struct, frozen=True, gc=False):
    end: int
    """Tick at which the device is done."""
    after: int
    """What the host then does."""


class StepClock:
    """The steps in flight, oldest first. Ticks never go back from call to call."""

    def __init__(self, cost_model: CostModel) -> None:
        self._cost_model = cost_model
        self._launched: deque[_Launched] = deque()
        self._device_is_free = 0
        self._host_is_free = 0

    def launch(self, parts: StepComposition, now: int) -> None:
        """The host plans a step at `now`, or as soon as it has launched the one before."""
        host = self._cost_model.host_ticks(parts)
        ready = max(now, self._host_is_free) + host.before
        start = max(ready, self._device_is_free)
        self._host_is_free = ready + host.launch
        self._device_is_free = max(start + self._cost_model.ticks(parts), self._host_is_free)
        self._launched.append(_Launched(self._device_is_free, host.after))

    def next_end(self, now: int) -> int:
        """Tick at which the oldest step is closed by a host that has nothing else to do."""
        oldest = self._launched[0]
        return max(now, oldest.end, self._host_is_free) + oldest.after

    @property
    def device_end(self) -> int:
        """Tick at which the device is done with the oldest step."""
        return self._launched[0].end

    def close(self) -> None:
        """The oldest step is over."""
        self._launched.popleft()

    def follow(self, closed: int, parts: StepComposition) -> None:
        """Instead of the one step in flight there is another, begun as soon as the one before it
        was done, which was closed at that tick; both decode the same sequences."""
        after = self._launched[0].after
        self._device_is_free = closed - after + self._cost_model.ticks(parts)
        self._launched = deque([_Launched(self._device_is_free, after)])


def alone_ticks(cost_model: CostModel, parts: StepComposition) -> int:
    """What a step takes with nothing else in flight."""
    host = cost_model.host_ticks(parts)
    if host is NO_HOST:
        return cost_model.ticks(parts)
    return host.before + max(cost_model.ticks(parts), host.launch) + host.after


def alone_line(
    cost_model: CostModel, num_sequences: int, context: int, num_repeated: int = 0
) -> DecodeLine:
    """Likewise of steps that only decode; see `CostModel.decode_line`."""
    host = cost_model.host_ticks(decode_parts(num_sequences, context, num_repeated))
    base, slope, last = cost_model.decode_line(num_sequences, context, num_repeated)
    around = host.before + host.after
    if base + slope * context >= host.launch:
        return DecodeLine(base + around, slope, last)
    if slope > 0:
        reached = (host.launch - base) // slope
        last = reached if last is None else min(last, reached)
    return DecodeLine(host.launch + around, 0, last)


def decode_parts(num_sequences: int, context: int, num_repeated: int = 0) -> StepComposition:
    """A step in which each of the sequences decodes and samples."""
    return StepComposition(
        num_decode_sequences=num_sequences,
        num_context_tokens=context,
        num_repeated_tokens=num_repeated,
        num_samples=num_sequences,
    )
