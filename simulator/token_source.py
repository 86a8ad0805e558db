"""Decides which tokens a simulated step returns, since no model runs.

A token source is an executor (`step.Executor`) that computes nothing. It follows the rows from
the plans alone, as a real executor does, so it can stand behind any stepping scheduler.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.step import BeamSelection, StepPlan, StepResult
from pagetwin.engine.trace import Record, ResultRecord

TokenScript = Callable[[Request, int, int], int]
"""(request, sample index, output position) to token id."""

NUM_SCRIPT_TOKENS = 2**31


def hashed_token(request: Request, sample_index: int, position: int) -> int:
    """A token of its own for each request, sample and position; outputs share no prefix."""
    name = f"{request.request_id}/{sample_index}:{position}"
    return zlib.crc32(name.encode()) % NUM_SCRIPT_TOKENS


@dataclass(slots=True)
class _Row:
    """What is known of one sequence: its tokens, and of a beam how many are computed."""

    request: Request
    sample_index: int
    num_outputs: int
    num_computed_tokens: int
    is_sample: bool
    """Neither a beam, nor a group that has yet to fork."""

    @property
    def is_computed(self) -> bool:
        return self.num_computed_tokens == self.request.num_prompt_tokens + self.num_outputs


class ScriptedTokens:
    """Tokens by a script; requests end by their own max_tokens (or a scripted stop token).

    Beam searches select their beams from parent i for beam i (all from beam 0 at first) and are
    over at max_tokens, or at `max_model_len` where they have none.
    """

    def __init__(
        self, script: TokenScript = hashed_token, *, max_model_len: int | None = None
    ) -> None:
        self._script = script
        self._max_model_len = max_model_len
        self._samples: dict[str, list[_Row]] = {}
        """By request, in sample order."""
        self._rows: dict[str, _Row] = {}
        """The same by sequence id."""

    def token(self, request: Request, sample_index: int, position: int) -> int:
        """The token that the script gives there, whenever that comes."""
        return self._script(request, sample_index, position)

    def advance(self, seq_id: str, num_tokens: int) -> None:
        """Counts tokens of a sequence that decoded without plans, one a step."""
        self._rows[seq_id].num_outputs += num_tokens

    def resume(self, request: Request, num_tokens: int) -> None:
        """Takes up the only sequence of a request that somebody else has begun."""
        self._set_rows(request, [(num_tokens - request.num_prompt_tokens, 0)])

    def execute(self, plan: StepPlan) -> StepResult:
        for request_id in plan.ended_requests:
            self._forget(request_id)
        for request in plan.new_requests:
            self._set_rows(request, [(0, 0)])
        for seq_id in plan.dropped:
            if seq_id in self._rows:
                self._rows[seq_id].num_computed_tokens = 0
        sampled: dict[str, int] = {}
        searches: dict[str, Request] = {}
        rows, script = self._rows, self._script
        for scheduled in plan.scheduled:
            row = rows[scheduled.seq_id]
            if row.is_sample:
                if scheduled.samples:
                    position = row.num_outputs
                    row.num_outputs = position + 1
                    sampled[scheduled.seq_id] = script(row.request, row.sample_index, position)
            elif row.request.beam_search is not None:
                computed = scheduled.num_computed_tokens + scheduled.num_scheduled_tokens
                row.num_computed_tokens = computed
                searches[row.request.request_id] = row.request
            elif scheduled.samples:
                sampled |= self._fork(row)
        selections = [self._select(one) for one in searches.values() if self._is_due(one)]
        return StepResult(step=plan.step, sampled=sampled, selections=tuple(selections))

    def _set_rows(self, request: Request, counts: Sequence[tuple[int, int]]) -> None:
        """Sequences of a request anew: (output tokens, computed tokens) of each."""
        self._forget(request.request_id)
        is_sample = request.beam_search is None and len(counts) == request.num_samples
        rows = [
            _Row(request, index, num_outputs, num_computed, is_sample)
            for index, (num_outputs, num_computed) in enumerate(counts)
        ]
        self._samples[request.request_id] = rows
        for row in rows:
            self._rows[sequence_id(request.request_id, row.sample_index)] = row

    def _forget(self, request_id: str) -> None:
        for row in self._samples.pop(request_id, ()):
            del self._rows[sequence_id(request_id, row.sample_index)]

    def _fork(self, row: _Row) -> dict[str, int]:
        """The group forks in this step: a token for each of its samples (P2.8)."""
        request = row.request
        position = row.num_outputs
        counts = (position + 1, row.num_computed_tokens)
        self._set_rows(request, [counts] * request.num_samples)
        return {
            sequence_id(request.request_id, index): self._script(request, index, position)
            for index in range(request.num_samples)
        }

    def _is_due(self, request: Request) -> bool:
        """Whether every beam is computed, so that the result carries the selection (P2.8a)."""
        return all(row.is_computed for row in self._samples[request.request_id])

    def _select(self, request: Request) -> BeamSelection:
        samples = self._samples[request.request_id]
        position, computed = samples[0].num_outputs, samples[0].num_computed_tokens
        num_tokens = request.num_prompt_tokens + position
        max_tokens = request.sampling_params.max_tokens
        at_end = self._max_model_len is not None and num_tokens >= self._max_model_len
        if at_end or (max_tokens is not None and position >= max_tokens):
            return BeamSelection(request_id=request.request_id, finished=True)
        width = request.num_samples
        parents = tuple(range(width)) if len(samples) == width else (0,) * width
        self._set_rows(request, [(position + 1, computed)] * width)
        return BeamSelection(
            request_id=request.request_id,
            parents=parents,
            token_ids=tuple(self._script(request, beam, position) for beam in range(width)),
        )


class RecordedTokens:
    """The results of a recorded history, by step; for the same scheduler and the same events."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._results = {
            record.step: record.to_result()
            for record in records
            if isinstance(record, ResultRecord)
        }

    def execute(self, plan: StepPlan) -> StepResult:
        """Raises TraceError if the history has no result for the plan's step."""
        if plan.step not in self._results:
            raise TraceError(
                f"the history has no result for step {plan.step}: it holds {len(self._results)} "
                "results; it was cut, or the events that led here are not the recorded ones"
            )
        return self._results[plan.step]
