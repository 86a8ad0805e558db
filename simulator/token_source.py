"""Decides which tokens a simulated step returns, since no model runs.

A token source is an executor (`step.Executor`) that computes nothing. It follows the rows from
the plans alone, as a real executor does, so it can stand behind any stepping scheduler.
"""

import zlib
from collections.abc import Callable, Iterable
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
    """What is known of one sequence: all its tokens counted, and those computed."""

    num_tokens: int
    num_computed_tokens: int


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
        self._requests: dict[str, Request] = {}
        self._samples: dict[str, dict[int, _Row]] = {}

    def token(self, request: Request, sample_index: int, position: int) -> int:
        """The token that the script gives there, whenever that comes."""
        return self._script(request, sample_index, position)

    def advance(self, request_id: str, sample_index: int, num_tokens: int) -> None:
        """Counts tokens of a sequence that decoded without plans, one a step."""
        row = self._samples[request_id][sample_index]
        row.num_tokens += num_tokens
        row.num_computed_tokens += num_tokens

    def resume(self, request: Request, *, num_tokens: int, num_computed_tokens: int) -> None:
        """Takes up the only sequence of a request that somebody else has begun."""
        self._requests[request.request_id] = request
        self._samples[request.request_id] = {0: _Row(num_tokens, num_computed_tokens)}

    def execute(self, plan: StepPlan) -> StepResult:
        for request_id in plan.ended_requests:
            del self._requests[request_id], self._samples[request_id]
        for request in plan.new_requests:
            self._requests[request.request_id] = request
            self._samples[request.request_id] = {
                0: _Row(num_tokens=request.num_prompt_tokens, num_computed_tokens=0)
            }
        for seq_id in plan.dropped:
            request_id, index = _split(seq_id)
            if index in self._samples.get(request_id, {}):
                self._samples[request_id][index].num_computed_tokens = 0
        sampled: dict[str, int] = {}
        for row in plan.scheduled:
            request_id, index = _split(row.seq_id)
            seen = self._samples[request_id][index]
            seen.num_computed_tokens = row.num_computed_tokens + row.num_scheduled_tokens
            if row.samples and self._requests[request_id].beam_search is None:
                sampled |= self._sample(self._requests[request_id], index)
        touched = dict.fromkeys(_split(row.seq_id)[0] for row in plan.scheduled)
        searches = [self._requests[name] for name in touched if self._requests[name].beam_search]
        selections = [self._select(request) for request in searches if self._is_due(request)]
        return StepResult(step=plan.step, sampled=sampled, selections=tuple(selections))

    def _sample(self, request: Request, index: int) -> dict[str, int]:
        """The row's token; where its group forks in this step, each sample's (P2.8)."""
        samples = self._samples[request.request_id]
        if samples[index].num_tokens == request.num_prompt_tokens:
            for other in range(1, request.num_samples):
                samples[other] = _Row(samples[0].num_tokens, samples[0].num_computed_tokens)
            members = range(request.num_samples)
        else:
            members = range(index, index + 1)
        sampled = {}
        for member in members:
            position = samples[member].num_tokens - request.num_prompt_tokens
            samples[member].num_tokens += 1
            name = sequence_id(request.request_id, member)
            sampled[name] = self._script(request, member, position)
        return sampled

    def _is_due(self, request: Request) -> bool:
        """Whether every beam is computed, so that the result carries the selection (P2.8a)."""
        rows = self._samples[request.request_id].values()
        return all(row.num_computed_tokens == row.num_tokens for row in rows)

    def _select(self, request: Request) -> BeamSelection:
        samples = self._samples[request.request_id]
        num_tokens, computed = samples[0].num_tokens, samples[0].num_computed_tokens
        position = num_tokens - request.num_prompt_tokens
        max_tokens = request.sampling_params.max_tokens
        at_end = self._max_model_len is not None and num_tokens >= self._max_model_len
        if at_end or (max_tokens is not None and position >= max_tokens):
            return BeamSelection(request_id=request.request_id, finished=True)
        width = request.num_samples
        parents = tuple(range(width)) if len(samples) == width else (0,) * width
        self._samples[request.request_id] = {
            beam: _Row(num_tokens + 1, computed) for beam in range(width)
        }
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


def _split(seq_id: str) -> tuple[str, int]:
    request_id, _, index = seq_id.rpartition("/")
    return request_id, int(index)
