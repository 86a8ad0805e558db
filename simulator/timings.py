"""Decides what counts as a request's first schedule, first token and end, in virtual seconds."""

from dataclasses import dataclass, field

import msgspec

from pagetwin.engine.request import Request
from pagetwin.engine.step import Counters, FinishReason, StepPlan, StepResult, StepUpdate


class RequestTimings(msgspec.Struct, frozen=True, kw_only=True):
    """What one request saw; a time is None if it did not come to that."""

    request_id: str
    arrival_s: float
    first_scheduled_s: float | None
    first_token_s: float | None
    finish_s: float | None
    """End of its last sequence, or its abort."""
    num_output_tokens: int
    """Over all its samples."""
    longest_output: int
    """Tokens of its longest sample."""
    finish_reasons: tuple[FinishReason, ...]
    """In the order in which its sequences ended; an abort counts as one, the last."""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> float | None:
        """From arrival to the end."""
        return None if self.finish_s is None else self.finish_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first, of its longest sample."""
        if self.first_token_s is None or self.finish_s is None or self.longest_output < 2:
            return None
        return (self.finish_s - self.first_token_s) / (self.longest_output - 1)


class SimulationResult(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run."""

    requests: tuple[RequestTimings, ...]
    """Accepted requests in the order of submission."""
    refused: dict[str, str]
    """Reason by request id."""
    num_steps: int
    busy_s: float
    """Sum of the steps' durations."""
    end_s: float
    """Virtual time at which the last step ended."""
    counters: Counters


@dataclass(slots=True)
class _Watch:
    """The times of one request while it runs."""

    request: Request
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finish_s: float | None = None
    was_aborted: bool = False
    outputs: dict[str, int] = field(default_factory=dict)
    endings: dict[str, FinishReason] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        # The beams of a search end together, however many there are by then.
        is_beam_search = self.request.beam_search is not None
        return is_beam_search or len(self.endings) == self.request.num_samples


class Timekeeper:
    """Reads the times of requests off the plans and updates that a replica makes."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self._watches: list[_Watch] = []
        self._live: dict[str, _Watch] = {}
        self._num_steps = 0
        self._busy_s = 0.0
        self._end_s = 0.0

    def refuse(self, request: Request, reason: str) -> None:
        self.refused[request.request_id] = reason

    def submit(self, request: Request) -> None:
        watch = _Watch(request)
        self._watches.append(watch)
        self._live[request.request_id] = watch

    def abort(self, request_id: str, now: float) -> None:
        watch = self._live.pop(request_id)
        watch.finish_s = now
        watch.was_aborted = True

    def plan(self, plan: StepPlan, now: float) -> None:
        for request in plan.new_requests:
            self._live[request.request_id].first_scheduled_s = now

    def close(self, result: StepResult, update: StepUpdate, *, now: float, duration: float) -> None:
        self._num_steps += 1
        self._busy_s += duration
        self._end_s = now
        for seq_id in result.sampled:
            self._count_token(seq_id, now)
        for selection in result.selections:
            for index in range(len(selection.parents)):
                self._count_token(f"{selection.request_id}/{index}", now)
        ended = dict.fromkeys(_request_id(ending.seq_id) for ending in update.finished)
        for ending in update.finished:
            self._live[_request_id(ending.seq_id)].endings[ending.seq_id] = ending.reason
        for request_id in ended:
            if self._live[request_id].is_over:
                self._live.pop(request_id).finish_s = now

    def result(self, counters: Counters) -> SimulationResult:
        return SimulationResult(
            requests=tuple(_timings(watch) for watch in self._watches),
            refused=self.refused,
            num_steps=self._num_steps,
            busy_s=self._busy_s,
            end_s=self._end_s,
            counters=counters,
        )

    def _count_token(self, seq_id: str, now: float) -> None:
        watch = self._live.get(_request_id(seq_id))
        if watch is None or seq_id in watch.endings:
            return  # a late result: the sequence ended while this step was in flight
        if watch.first_token_s is None:
            watch.first_token_s = now
        watch.outputs[seq_id] = watch.outputs.get(seq_id, 0) + 1


def _request_id(seq_id: str) -> str:
    return seq_id.rpartition("/")[0]


def _timings(watch: _Watch) -> RequestTimings:
    return RequestTimings(
        request_id=watch.request.request_id,
        arrival_s=watch.request.arrival_s,
        first_scheduled_s=watch.first_scheduled_s,
        first_token_s=watch.first_token_s,
        finish_s=watch.finish_s,
        num_output_tokens=sum(watch.outputs.values()),
        longest_output=max(watch.outputs.values(), default=0),
        finish_reasons=(*watch.endings.values(), *(("abort",) if watch.was_aborted else ())),
    )
