"""Decides what is said of the times of requests and runs, in virtual time."""

from dataclasses import dataclass

import msgspec

from pagetwin.engine.step import Counters, FinishReason
from pagetwin.simulator.clock import TICKS_PER_S, to_seconds


class RequestTimings(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request saw, in ticks; a time is None if it did not come to that."""

    request_id: str
    arrival_ticks: int
    first_scheduled_ticks: int | None
    first_token_ticks: int | None
    finish_ticks: int | None
    """End of its last sequence, or its abort."""
    num_output_tokens: int
    """Over all its samples."""
    longest_output: int
    """Tokens of its longest sample."""
    finish_reasons: tuple[FinishReason, ...]
    """In the order in which its sequences ended; an abort counts as one, the last."""

    @property
    def arrival_s(self) -> float:
        return to_seconds(self.arrival_ticks)

    @property
    def first_scheduled_s(self) -> float | None:
        return _seconds(self.first_scheduled_ticks)

    @property
    def first_token_s(self) -> float | None:
        return _seconds(self.first_token_ticks)

    @property
    def finish_s(self) -> float | None:
        return _seconds(self.finish_ticks)

    @property
    def queue_s(self) -> float | None:
        """From arrival to the start of the first step that has it."""
        return _seconds_between(self.arrival_ticks, self.first_scheduled_ticks)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from arrival."""
        return _seconds_between(self.arrival_ticks, self.first_token_ticks)

    @property
    def e2e_s(self) -> float | None:
        """From arrival to the end."""
        return _seconds_between(self.arrival_ticks, self.finish_ticks)

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first, of its longest sample."""
        if self.first_token_ticks is None or self.finish_ticks is None or self.longest_output < 2:
            return None
        ticks = self.finish_ticks - self.first_token_ticks
        return ticks / ((self.longest_output - 1) * TICKS_PER_S)


@dataclass(slots=True)
class Census:
    """Counts requests in two ways that must agree (Little's law): the number outstanding summed
    over time, and the time outstanding summed over the requests that are over."""

    num_outstanding: int = 0
    outstanding_ticks: int = 0
    sojourn_ticks: int = 0
    _latest: int = 0

    def enter(self, now: int) -> None:
        self.outstanding_ticks += self.num_outstanding * (now - self._latest)
        self._latest = now
        self.num_outstanding += 1

    def leave(self, now: int, entered: int) -> None:
        self.outstanding_ticks += self.num_outstanding * (now - self._latest)
        self._latest = now
        self.num_outstanding -= 1
        self.sojourn_ticks += now - entered


class SimulationResult(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run."""

    requests: tuple[RequestTimings, ...]
    """Accepted requests in the order of submission; empty if they were streamed out."""
    refused: dict[str, str]
    """Reason by request id."""
    num_steps: int
    busy_ticks: int
    """Sum of the steps' durations."""
    end_ticks: int
    """Virtual time at which the last step ended."""
    outstanding_ticks: int
    """The number of requests outstanding, summed over time."""
    sojourn_ticks: int
    """The time from submission to end, summed over the requests: Little's law says that it is
    `outstanding_ticks`."""
    counters: Counters

    @property
    def mean_outstanding(self) -> float:
        """Requests outstanding, on average over the run."""
        return self.outstanding_ticks / self.end_ticks if self.end_ticks else 0.0

    @property
    def busy_s(self) -> float:
        return to_seconds(self.busy_ticks)

    @property
    def end_s(self) -> float:
        return to_seconds(self.end_ticks)


def _seconds(ticks: int | None) -> float | None:
    return None if ticks is None else to_seconds(ticks)


def _seconds_between(start: int, end: int | None) -> float | None:
    return None if end is None else to_seconds(end - start)
