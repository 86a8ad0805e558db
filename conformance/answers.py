"""Answers: completes an executor's results where no text and no sampler exist.

The fingerprint executor gives tokens and beam candidates. What a real engine adds between the
executor and the scheduler, stop strings and beam selections, is added here, and so are rows that
fail: selections by the engine's beam rules over the made-up scores, the others at steps that a
hash picks.
"""

import zlib
from collections.abc import Collection
from typing import TypeVar

import msgspec

from pagetwin.engine.beam_search import BeamSearch
from pagetwin.engine.request import Request
from pagetwin.engine.step import BeamSelection, Executor, StepPlan, StepResult, TokenLogprobs

Answer = TypeVar("Answer")

ODDS = 4
"""One in so many tokens of a request with stop strings completes one; one in so many rows of a
failing request fails."""


class CompletedAnswers:
    """An executor whose results carry stop strings and selections as well."""

    def __init__(
        self, executor: Executor, *, max_model_len: int, failing: Collection[str] = ()
    ) -> None:
        self._executor = executor
        self._max_model_len = max_model_len
        self._failing = failing
        self._requests: dict[str, Request] = {}
        self._searches: dict[str, BeamSearch] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        result = self._executor.execute(plan)
        for request_id in plan.ended_requests:
            self._requests.pop(request_id, None)
            self._searches.pop(request_id, None)
        for request in plan.new_requests:
            self._requests[request.request_id] = request
            if request.beam_search is not None:
                self._searches[request.request_id] = self._search(request)
        for preempted in plan.preempted:
            request_id, index = _split(preempted.seq_id)
            if request_id in self._searches:
                self._searches[request_id].forget(index)
        sampled, failed = self._split_failed(result.sampled, result.step)
        reports, failed_beams = self._split_failed(result.logprobs, result.step)
        return msgspec.structs.replace(
            result,
            sampled=sampled,
            failed=failed | failed_beams,
            stop_strings=self._stop_strings(sampled, result.step),
            selections=self._selections(reports),
        )

    def _split_failed(
        self, answers: dict[str, Answer], step: int
    ) -> tuple[dict[str, Answer], dict[str, str]]:
        """Answers that stand, and why the others failed."""
        failed = {
            seq_id: f"made to fail in step {step}"
            for seq_id in answers
            if _split(seq_id)[0] in self._failing and fails_by_chance(seq_id, step)
        }
        return {key: answer for key, answer in answers.items() if key not in failed}, failed

    def _search(self, request: Request) -> BeamSearch:
        room = self._max_model_len - request.num_prompt_tokens
        max_tokens = request.sampling_params.max_tokens
        return BeamSearch(request, max_tokens=min(room, max_tokens or room))

    def _stop_strings(self, sampled: dict[str, int], step: int) -> dict[str, str]:
        found = {}
        for seq_id in sampled:
            stop = self._requests[_split(seq_id)[0]].sampling_params.stop
            if stop and _picked(seq_id, step, "stops"):
                found[seq_id] = stop[0]
        return found

    def _selections(self, reports: dict[str, TokenLogprobs]) -> tuple[BeamSelection, ...]:
        touched: dict[str, None] = {}
        for seq_id, candidates in reports.items():
            request_id, index = _split(seq_id)
            if request_id in self._searches:
                self._searches[request_id].report(index, candidates)
                touched[request_id] = None
        chosen = [self._searches[request_id].select() for request_id in touched]
        return tuple(selection for selection in chosen if selection is not None)


def fails_by_chance(seq_id: str, step: int) -> bool:
    """Whether a failing request's row fails in this step."""
    return _picked(seq_id, step, "fails")


def _picked(seq_id: str, step: int, purpose: str) -> bool:
    return zlib.crc32(f"{purpose} {seq_id} {step}".encode()) % ODDS == 0


def _split(seq_id: str) -> tuple[str, int]:
    request_id, _, index = seq_id.rpartition("/")
    return request_id, int(index)
