"""Decides the next beams of a beam search, and when the search is over.

The rules are those of transformers' `GenerationMixin._beam_search` with do_sample=False, one
prompt at a time, in float32: the same tokens and the same scores.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pagetwin.engine.request import Request
from pagetwin.engine.step import BeamSelection, FinishReason, TokenLogprobs


def ending_token_ids(request: Request) -> frozenset[int]:
    """The tokens that finish a beam."""
    params = request.sampling_params
    return frozenset(params.stop_token_ids).union(
        () if params.ignore_eos else request.eos_token_ids
    )


def num_candidates(request: Request) -> int:
    """Continuations that a beam must report, and that a selection looks at.

    As many as leave beam_width that go on, if every ending token is among the best of every beam.
    """
    assert request.beam_search is not None
    return request.beam_search.beam_width * max(2, 1 + len(ending_token_ids(request)))


@dataclass(frozen=True)
class Hypothesis:
    """A beam, finished or not; `score` is cumulative_logprob / length ** length_penalty."""

    token_ids: tuple[int, ...]
    cumulative_logprob: float
    score: float
    finish_reason: FinishReason | None


class BeamSearch:
    """The search of one request: its live beams, best first, and its finished hypotheses.

    `max_tokens` is the length at which every beam ends. A live beam whose cumulative logprob is
    -inf only fills a place, where processors left fewer continuations than beams.
    """

    def __init__(self, request: Request, *, max_tokens: int) -> None:
        assert request.beam_search is not None
        self._request_id = request.request_id
        self._params = request.beam_search
        self._max_tokens = max_tokens
        self._ending = frozenset(ending_token_ids(request))
        self._num_candidates = num_candidates(request)
        self._beams: list[tuple[int, ...]] = [()]
        self._scores = np.zeros(1, np.float32)
        self._finished: list[Hypothesis] = []
        self._candidates: dict[int, TokenLogprobs] = {}

    def report(self, beam: int, candidates: TokenLogprobs) -> None:
        """Takes a beam's best continuations, `num_candidates` of them if the vocabulary has so
        many; a second report replaces the first."""
        self._candidates[beam] = candidates

    def forget(self, beam: int) -> None:
        """Drops the report of a beam that was preempted: it runs, and reports, again."""
        self._candidates.pop(beam, None)

    def select(self) -> BeamSelection | None:
        """The next beams; None until every live beam has reported since the last selection."""
        if len(self._candidates) < len(self._beams):
            return None
        beams, tokens, scores = self._best_continuations()
        self._candidates.clear()
        length = len(self._beams[0]) + 1
        ends = np.array([int(t) in self._ending for t in tokens], bool)
        ends |= length >= self._max_tokens
        self._finish(beams, tokens, scores, ends)
        going = np.flatnonzero(~ends)[: self._params.beam_width]
        if going.size == 0 or self._is_over(scores[going[0]], length):
            self._beams, self._scores = [], np.zeros(0, np.float32)
            return BeamSelection(request_id=self._request_id, finished=True)
        return self._advance(beams[going], tokens[going], scores[going])

    def best(self, count: int) -> list[Hypothesis]:
        """The best finished hypotheses; while the search goes on, its live beams after them."""
        live = [
            Hypothesis(beam, float(score), self._normalised(score, max(1, len(beam))), None)
            for beam, score in zip(self._beams, self._scores, strict=True)
            if np.isfinite(score)
        ]
        return (self._finished + live)[:count]

    def _best_continuations(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """(parent beam, token, cumulative logprob), best first.

        Ties go to the smaller beam, then to the smaller token; transformers leaves them open.
        """
        reports = [self._candidates[beam] for beam in range(len(self._beams))]
        sizes = [len(report.token_ids) for report in reports]
        beams = np.repeat(np.arange(len(reports)), sizes)
        tokens = np.array([t for report in reports for t in report.token_ids], np.int64)
        logprobs = np.array([x for report in reports for x in report.logprobs], np.float32)
        scores = logprobs + self._scores[beams]
        order = np.lexsort((tokens, beams, -scores))
        order = order[np.isfinite(scores[order])][: self._num_candidates]
        return beams[order], tokens[order], scores[order]

    def _finish(
        self,
        beams: NDArray[np.int64],
        tokens: NDArray[np.int64],
        scores: NDArray[np.float32],
        ends: NDArray[np.bool_],
    ) -> None:
        """Keeps the best beam_width of the finished hypotheses, old and new.

        Of the continuations that end, only those among the best beam_width of all count.
        """
        width = self._params.beam_width
        for i in np.flatnonzero(ends[:width]):
            token_ids = (*self._beams[beams[i]], int(tokens[i]))
            score = self._normalised(scores[i], len(token_ids))
            reason: FinishReason = "stop" if token_ids[-1] in self._ending else "length"
            self._finished.append(Hypothesis(token_ids, float(scores[i]), score, reason))
        self._finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self._finished[width:]

    def _is_over(self, best_score: np.float32, length: int) -> bool:
        """Whether no running beam can, or may, still displace a finished one."""
        params = self._params
        if len(self._finished) < params.beam_width:
            return False
        if params.early_stopping is True:
            return True
        if params.early_stopping == "never" and params.length_penalty > 0:
            length = self._max_tokens
        return self._normalised(best_score, length) <= self._finished[-1].score

    def _advance(
        self, parents: NDArray[np.int64], tokens: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> BeamSelection:
        """Makes the chosen continuations the live beams, filled up to beam_width."""
        missing = self._params.beam_width - len(parents)
        parents = np.pad(parents, (0, missing), mode="edge")
        tokens = np.pad(tokens, (0, missing), mode="edge")
        self._scores = np.pad(scores, (0, missing), constant_values=-np.inf)
        selection = BeamSelection(
            request_id=self._request_id,
            parents=tuple(parents.tolist()),
            token_ids=tuple(tokens.tolist()),
        )
        pairs = zip(selection.parents, selection.token_ids, strict=True)
        self._beams = [(*self._beams[parent], token) for parent, token in pairs]
        return selection

    def _normalised(self, cumulative_logprob: np.float32, length: int) -> float:
        return float(
            np.float32(cumulative_logprob) / np.float32(length**self._params.length_penalty)
        )
