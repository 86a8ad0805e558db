"""Decides what a step's tokens mean for the callers: text, stop strings, beams, and outputs.

It keeps what preemption must not touch (docs/policy.md P3.4): detokenisers, logprobs and beam
candidates. `process` runs before the scheduler's update, `collect` after it.
"""

import msgspec

from pagetwin.engine.beam_search import BeamSearch
from pagetwin.engine.live_request import LiveRequest
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.step import (
    BeamSelection,
    FinishedSequence,
    FinishReason,
    StepPlan,
    StepResult,
    StepUpdate,
)
from pagetwin.engine.tokenizer import Tokenizer


class OutputProcessor:
    """The live requests' outputs; implements the core's ResultProcessor.

    For each step: `process(plan, result)`, then the scheduler's update, then
    `collect(update)`. Rows of requests that it does not know, or of samples that have ended,
    are late and ignored (docs/policy.md P5.3c).
    """

    def __init__(self, tokenizer: Tokenizer | None, *, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._live: dict[str, LiveRequest] = {}
        self._of_sequence: dict[str, tuple[str, int]] = {}
        # Requests that the step in hand may have changed, in order; the values mean nothing.
        self._touched: dict[str, None] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._live

    def __len__(self) -> int:
        return len(self._live)

    def add_request(self, request: Request, prompt: str | None) -> None:
        """Follows a request that the scheduler has accepted."""
        request_id = request.request_id
        assert request_id not in self._live, f"{request_id} is already followed"
        self._live[request_id] = LiveRequest(request, prompt, self._tokenizer, self._max_model_len)
        for index in range(request.num_samples):
            self._of_sequence[sequence_id(request_id, index)] = (request_id, index)

    def process(self, plan: StepPlan, result: StepResult) -> StepResult:
        """The result with the stop strings found and the selections made."""
        self._note_plan(plan)
        stop_strings: dict[str, str] = {}
        for seq_id, token_id in result.sampled.items():
            live, index = self._find(seq_id)
            if live is None or live.beam_search is not None:
                continue
            sample = live.samples[index]
            if sample.finished is not None:
                continue
            self._touched[live.request.request_id] = None
            stop = live.append(sample, token_id, result.logprobs.get(seq_id))
            if stop is not None:
                stop_strings[seq_id] = stop
        for scheduled in plan.scheduled:
            entries = result.prompt_logprobs.get(scheduled.seq_id)
            live, _ = self._find(scheduled.seq_id)
            if live is not None and entries:
                live.take_prompt_logprobs(scheduled.num_computed_tokens + 1, entries)
        selections = self._select(plan, result)
        return msgspec.structs.replace(result, stop_strings=stop_strings, selections=selections)

    def collect(self, update: StepUpdate) -> list[RequestOutput]:
        """The outputs that are due after the step's update, in plan order."""
        for finished in update.finished:
            live, index = self._find(finished.seq_id)
            if live is not None:
                self._touched[live.request.request_id] = None
                live.finish(index, finished)
        outputs = []
        for request_id in self._touched:
            live = self._live[request_id]
            if live.is_finished:
                outputs.append(self._end(request_id))
            elif live.is_due():
                outputs.append(live.output(finished=False))
        self._touched.clear()
        return outputs

    def abort(self, request_id: str) -> RequestOutput | None:
        """Ends a request's unfinished samples with reason "abort"; None if it is not alive."""
        return self._cut_short(request_id, "abort")

    def fail(self, request_id: str, error: str) -> RequestOutput | None:
        """Likewise with reason "error", because a step could not be carried out."""
        return self._cut_short(request_id, "error", error)

    def _cut_short(
        self, request_id: str, reason: FinishReason, stop_reason: str | None = None
    ) -> RequestOutput | None:
        live = self._live.get(request_id)
        if live is None:
            return None
        for index, sample in enumerate(live.samples):
            if sample.finished is None:
                seq_id = sequence_id(request_id, index)
                sample.finish(FinishedSequence(seq_id, reason, stop_reason))
        self._touched.pop(request_id, None)
        return self._end(request_id)

    def _note_plan(self, plan: StepPlan) -> None:
        for request in plan.new_requests:
            if request.request_id in self._live:
                self._live[request.request_id].started = True
        for introduced in plan.introduced:
            live = self._live.get(introduced.request_id)
            if live is not None and live.num_cached_tokens is None:
                live.num_cached_tokens = introduced.num_cached_tokens
        for preemption in plan.preempted:
            live, index = self._find(preemption.seq_id)
            if live is not None and live.beam_search is not None:
                live.beam_search.forget(index)

    def _select(self, plan: StepPlan, result: StepResult) -> tuple[BeamSelection, ...]:
        searches: dict[str, BeamSearch] = {}
        for scheduled in plan.scheduled:
            live, index = self._find(scheduled.seq_id)
            if live is not None and live.beam_search is not None:
                # A beam that runs has nothing to say until it reports anew.
                live.beam_search.forget(index)
                if scheduled.samples and scheduled.seq_id not in result.failed:
                    live.beam_search.report(index, result.logprobs[scheduled.seq_id])
                    searches[live.request.request_id] = live.beam_search
        selections = (search.select() for search in searches.values())
        return tuple(selection for selection in selections if selection is not None)

    def _find(self, seq_id: str) -> tuple[LiveRequest | None, int]:
        """The live request that a row belongs to, and its sample index.

        A request that no plan has carried yet owns no row: one of its name is a predecessor's.
        """
        request_id, index = self._of_sequence.get(seq_id, ("", 0))
        live = self._live.get(request_id)
        return (live, index) if live is not None and live.started else (None, 0)

    def _end(self, request_id: str) -> RequestOutput:
        live = self._live.pop(request_id)
        for index in range(live.request.num_samples):
            del self._of_sequence[sequence_id(request_id, index)]
        return live.output(finished=True)
