"""Decides what counts as a request's first schedule, first token and end, in virtual time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.step import (
    Counters,
    FinishedSequence,
    FinishReason,
    StepPlan,
    StepResult,
    StepUpdate,
)
from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.timings import Census, RequestTimings, SimulationResult
from pagetwin.simulator.token_gaps import TokenGaps


@dataclass(slots=True)
class Watch:
    """The times of one request while it lives."""

    request: Request
    number: int
    submitted: int
    first_scheduled: int | None = None
    first_token: int | None = None
    outputs: dict[str, int] = field(default_factory=dict)
    """Tokens by sequence that has begun, in that order; right once the sequence is over."""
    endings: dict[str, FinishReason] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        # The beams of a search end together, however many there are by then.
        is_beam_search = self.request.beam_search is not None
        return is_beam_search or len(self.endings) == self.request.num_samples


Finished = Callable[[RequestTimings], None]
FirstToken = Callable[[str, int], None]


class Timekeeper:
    """Reads the times of requests off the plans and updates that a replica makes.

    Each request's timings go to `on_finish` when it ends, and its id and the tick to
    `on_first_token` before that; without `on_finish` they are kept for `result`. `tell` calls
    them, when the books and the history are whole, so that they may submit and abort.
    """

    def __init__(
        self, on_first_token: FirstToken | None = None, on_finish: Finished | None = None
    ) -> None:
        self.refused: dict[str, str] = {}
        self._on_first_token = on_first_token
        self._on_finish = on_finish
        self._first_tokens: list[tuple[str, int]] = []
        self._ended: list[RequestTimings] = []
        self._over: list[tuple[int, RequestTimings]] = []
        self._live: dict[str, Watch] = {}
        self._num_tokens: dict[str, int] = {}
        """By sequence id, from its first token until it ends."""
        self._num_submitted = 0
        self.census = Census()
        self.gaps: TokenGaps | None = None
        """To be set by whoever wants the gaps between tokens counted."""
        self._num_steps = 0
        self._busy = 0
        self._end = 0

    @property
    def num_outstanding(self) -> int:
        """Requests that were submitted and are not over."""
        return len(self._live)

    @property
    def num_queued_tokens(self) -> int:
        """Prompt tokens of the requests that no step has had yet."""
        watches = self._live.values()
        return sum(w.request.num_prompt_tokens for w in watches if w.first_scheduled is None)

    @property
    def outstanding(self) -> tuple[Request, ...]:
        """Those requests, in the order of submission."""
        return tuple(watch.request for watch in self._live.values())

    def refuse(self, request: Request, reason: str) -> None:
        self.refused[request.request_id] = reason

    def submit(self, request: Request, now: int) -> None:
        self._live[request.request_id] = Watch(request, self._num_submitted, now)
        self._num_submitted += 1
        self.census.enter(now)

    def abort(self, request_id: str, now: int) -> None:
        self._end_request(self._live.pop(request_id), now, was_aborted=True)

    def plan(self, plan: StepPlan, now: int) -> None:
        for request in plan.new_requests:
            self._live[request.request_id].first_scheduled = now

    def close(self, result: StepResult, update: StepUpdate, *, now: int, duration: int) -> None:
        """Notes a step that took `duration` ticks and ended at `now`."""
        self._num_steps += 1
        self._busy += duration
        self._end = now
        self._count(result.sampled, now)
        for selection in result.selections:
            beams = range(len(selection.parents))
            self._count([sequence_id(selection.request_id, index) for index in beams], now)
        if self.gaps is not None:
            for seq_id in result.sampled:
                if seq_id in self._num_tokens:
                    self.gaps.token(seq_id, now)
        if update.finished:
            self._end_sequences(update.finished, now)

    def _end_sequences(self, finished: Sequence[FinishedSequence], now: int) -> None:
        """Those are over, and so are the requests that have no other left."""
        for ending in finished:
            watch = self._live[_request_id(ending.seq_id)]
            watch.endings[ending.seq_id] = ending.reason
            self._forget(watch, ending.seq_id)
        for request_id in dict.fromkeys(_request_id(ending.seq_id) for ending in finished):
            if self._live[request_id].is_over:
                self._end_request(self._live.pop(request_id), now)

    def advance(
        self,
        seq_ids: Sequence[str],
        num_steps: int,
        *,
        now: int,
        duration: int,
        first: int,
        growth: int,
    ) -> None:
        """Notes steps that took `duration` ticks in all and ended at `now`, each of which gave a
        token, not its first, to each of the sequences. The first took `first` ticks, and from the
        second on each `growth` more than the one before."""
        self._num_steps += num_steps
        self._busy += duration
        self._end = now
        for seq_id in seq_ids:
            self._num_tokens[seq_id] += num_steps
        if self.gaps is not None:
            self.gaps.steps(
                seq_ids, num_steps, now=now, duration=duration, first=first, growth=growth
            )

    def keep(self, number: int, timings: RequestTimings) -> None:
        """Takes the timings of a request that is over, whose times somebody else has kept."""
        if self._on_finish is not None:
            self._on_finish(timings)
        else:
            self._over.append((number, timings))

    def note_first_token(self, request_id: str, now: int) -> None:
        """For `tell`: a first token whose time somebody else keeps."""
        if self._on_first_token is not None:
            self._first_tokens.append((request_id, now))

    def note_end(self, number: int, timings: RequestTimings) -> None:
        """Takes timings like `keep`, and leaves `on_finish` to `tell`."""
        if self._on_finish is not None:
            self._ended.append(timings)
        else:
            self._over.append((number, timings))

    def resume(
        self, live: Iterable[Watch], *, num_submitted: int, num_steps: int, busy: int, end: int
    ) -> None:
        """Goes on from there; the times of `live`, and those `keep` took, are of before."""
        self._live = {watch.request.request_id: watch for watch in live}
        for watch in self._live.values():
            self._num_tokens.update(watch.outputs)
        self._num_submitted = num_submitted
        self._num_steps = num_steps
        self._busy = busy
        self._end = end

    def tell(self) -> None:
        """Calls `on_first_token` and `on_finish` for what was noted since the last time."""
        first_tokens, self._first_tokens = self._first_tokens, []
        ended, self._ended = self._ended, []
        if self._on_first_token is not None:
            for request_id, now in first_tokens:
                self._on_first_token(request_id, now)
        if self._on_finish is not None:
            for timings in ended:
                self._on_finish(timings)

    def result(self, counters: Counters) -> SimulationResult:
        """What it has seen so far; AssertionError if nobody is outstanding and Little's law does
        not hold, which no input can bring about."""
        census = self.census
        assert census.num_outstanding > 0 or census.outstanding_ticks == census.sojourn_ticks, (
            f"requests were outstanding for {census.sojourn_ticks} ticks in all, but their number "
            f"summed over time is {census.outstanding_ticks}"
        )
        return SimulationResult(
            requests=tuple(timings for _, timings in sorted(self._over, key=lambda one: one[0])),
            refused=self.refused,
            num_steps=self._num_steps,
            busy_ticks=self._busy,
            end_ticks=self._end,
            outstanding_ticks=self.census.outstanding_ticks,
            sojourn_ticks=self.census.sojourn_ticks,
            counters=counters,
        )

    def _count(self, seq_ids: Iterable[str], now: int) -> None:
        """Each of the sequences got a token."""
        counts = self._num_tokens
        for seq_id in seq_ids:
            if seq_id in counts or self._begins(seq_id, now):
                counts[seq_id] += 1

    def _begins(self, seq_id: str, now: int) -> bool:
        """Notes a sequence's first token; False for a late result of one that is over."""
        watch = self._live.get(_request_id(seq_id))
        if watch is None or seq_id in watch.endings:
            return False
        watch.outputs[seq_id] = self._num_tokens[seq_id] = 0
        if watch.first_token is None:
            watch.first_token = now
            if self._on_first_token is not None:
                self._first_tokens.append((watch.request.request_id, now))
        return True

    def _forget(self, watch: Watch, seq_id: str) -> None:
        """The sequence is over."""
        if seq_id in self._num_tokens:
            watch.outputs[seq_id] = self._num_tokens.pop(seq_id)
        if self.gaps is not None:
            self.gaps.forget(seq_id)

    def _end_request(self, watch: Watch, now: int, *, was_aborted: bool = False) -> None:
        self.census.leave(now, watch.submitted)
        for seq_id in watch.outputs:
            self._forget(watch, seq_id)
        timings = RequestTimings(
            request_id=watch.request.request_id,
            arrival_ticks=to_ticks(watch.request.arrival_s),
            first_scheduled_ticks=watch.first_scheduled,
            first_token_ticks=watch.first_token,
            finish_ticks=now,
            num_output_tokens=sum(watch.outputs.values()),
            longest_output=max(watch.outputs.values(), default=0),
            finish_reasons=(*watch.endings.values(), *(("abort",) if was_aborted else ())),
        )
        if self._on_finish is not None:
            self._ended.append(timings)
        else:
            self._over.append((watch.number, timings))


def _request_id(seq_id: str) -> str:
    return seq_id.rpartition("/")[0]
