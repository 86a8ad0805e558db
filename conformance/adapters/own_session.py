"""A session of our engine: what its callers see, and its records beside that."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pagetwin.conformance.adapters.protocol import EngineInfo, EngineTimeout, TokenScores
from pagetwin.conformance.adapters.stepping import HangUps
from pagetwin.conformance.adapters.watchdog import Deadline
from pagetwin.conformance.observation import (
    AnyObservation,
    CachedTokens,
    Cancelled,
    Finished,
    PromptScored,
    Refused,
    Scored,
    Submitted,
    TextSeen,
    TokenSeen,
)
from pagetwin.engine.errors import RequestError
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.outputs import CompletionOutput, RequestOutput
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import TokenLogprobs
from pagetwin.engine.trace import HistoryWriter, Record

SCORE_TIMEOUT_S = 300.0


class _Progress(NamedTuple):
    """How much of a sample was seen."""

    num_tokens: int = 0
    num_chars: int = 0
    ended: bool = False


class OwnSession:
    """A SteppingSession, a PreemptingSession and a ScoringSession over LLMEngine."""

    def __init__(self, info: EngineInfo, engine: LLMEngine, history: HistoryWriter) -> None:
        self.engine = engine
        self._info = info
        self._history = history
        self._observed: list[AnyObservation] = [info.opened()]
        self._live: dict[str, Request] = {}
        self._seen: dict[tuple[str, int], _Progress] = {}
        self._told_cached: set[str] = set()
        self._hang_ups = HangUps()
        self._num_scored = 0

    def submit(self, request: Request, *, cancel_after: int | None = None) -> None:
        request_id = request.request_id
        self._observed.append(
            Submitted(request_id=request_id, prompt_token_ids=request.prompt_token_ids)
        )
        if not request.eos_token_ids:
            eos_token_ids = self.engine.eos_token_ids
            request = msgspec.structs.replace(request, eos_token_ids=eos_token_ids)
        try:
            self.engine.submit(request)
        except RequestError as error:
            self._observed.append(Refused(request_id=request_id, error=str(error)))
            return
        self._live[request_id] = request
        self._hang_ups.expect(request_id, cancel_after, self.cancel)

    def cancel(self, request_id: str) -> None:
        if self._live.pop(request_id, None) is not None:
            self._observed.append(Cancelled(request_id=request_id))
        self.engine.abort_request(request_id)

    def force_preempt(self, request_id: str) -> bool:
        return self.engine.core.preempt_request(request_id)

    def reset_prefix_cache(self) -> bool:
        return self.engine.reset_prefix_cache()

    def has_unfinished_requests(self) -> bool:
        return self.engine.core.has_unfinished_requests()

    def start_step(self) -> bool:
        return self.engine.core.start_step()

    def finish_step(self) -> bool:
        before = len(self._history.records)
        self._see(self.engine.finish_step())
        return len(self._history.records) > before

    def run(self, timeout_s: float) -> None:
        deadline = Deadline(timeout_s)
        while self.engine.has_unfinished_requests():
            deadline.check(self._info.name)
            before = len(self._history.records)
            self._see(self.engine.step())
            if len(self._history.records) == before and self.has_unfinished_requests():
                raise EngineTimeout(
                    f"{self._info.name}: requests live, and a step does nothing; it would wait "
                    "for ever"
                )

    def observations(self) -> Sequence[AnyObservation]:
        return self._observed

    def records(self) -> Sequence[Record]:
        return self._history.records

    def score(
        self, prompt_token_ids: Sequence[int], continuation: Sequence[int]
    ) -> list[TokenScores]:
        """By decoding, with each next token forced; whole distributions come with it."""
        self._num_scored += 1
        request_id = f"score-{self._num_scored}"
        params = SamplingParams(
            temperature=0.0,
            max_tokens=len(continuation),
            ignore_eos=True,
            logprobs=-1,
            trace_decode_token_ids=tuple(continuation),
        )
        first = len(self._observed)
        self.submit(
            Request(
                request_id=request_id,
                prompt_token_ids=tuple(prompt_token_ids),
                sampling_params=params,
            )
        )
        self.run(SCORE_TIMEOUT_S)
        return [
            TokenScores(
                token_id=one.token_id,
                logprob=one.logprob if one.logprob is not None else float("nan"),
                top=tuple((top.token_id, top.logprob) for top in one.top),
            )
            for one in self._observed[first:]
            if isinstance(one, TokenSeen) and one.request_id == request_id
        ]

    def close(self) -> None:
        self._history.close()

    def _see(self, outputs: Sequence[RequestOutput]) -> None:
        sampled: dict[str, int] = {}
        for output in outputs:
            request = self._live.get(output.request_id)
            if request is None:
                continue
            self._see_prompt(output)
            for sample in output.outputs:
                for token in self._see_sample(request, sample):
                    sampled[sequence_id(output.request_id, sample.index)] = token
            if output.finished:
                del self._live[output.request_id]
        self._hang_ups.see(sampled, self.cancel)

    def _see_prompt(self, output: RequestOutput) -> None:
        request_id = output.request_id
        if request_id in self._told_cached:
            return
        self._told_cached.add(request_id)
        self._observed.append(CachedTokens(request_id=request_id, count=output.num_cached_tokens))
        if output.prompt_logprobs is not None:
            scores = [one.logprobs[0] for one in output.prompt_logprobs if one is not None]
            self._observed.append(PromptScored(request_id=request_id, logprobs=tuple(scores)))

    def _see_sample(self, request: Request, sample: CompletionOutput) -> Sequence[int]:
        """Notes what is new of a sample; returns its new tokens."""
        name = (request.request_id, sample.index)
        before = self._seen.get(name, _Progress())
        if before.ended:
            return ()
        is_delta = request.sampling_params.output_kind == "delta"
        # Until a beam search ends, each of its tokens is provisional.
        if request.beam_search is not None and not sample.finished:
            return ()
        start = 0 if is_delta else before.num_tokens
        new = sample.token_ids[start:]
        scores = sample.logprobs[start:] if sample.logprobs is not None else (None,) * len(new)
        for token, score in zip(new, scores, strict=True):
            self._observed.append(_token_seen(request.request_id, sample.index, token, score))
        text = sample.text if is_delta else sample.text[before.num_chars :]
        if text:
            self._observed.append(
                TextSeen(request_id=request.request_id, sample_index=sample.index, text=text)
            )
        if sample.finish_reason is not None:
            self._observed.append(
                Finished(
                    request_id=request.request_id,
                    sample_index=sample.index,
                    reason=sample.finish_reason,
                    stop_reason=sample.stop_reason,
                )
            )
        self._seen[name] = _Progress(
            before.num_tokens + len(new), before.num_chars + len(text), sample.finished
        )
        return new


def _token_seen(
    request_id: str, index: int, token_id: int, score: TokenLogprobs | None
) -> TokenSeen:
    if score is None:
        return TokenSeen(request_id=request_id, sample_index=index, token_id=token_id)
    top = sorted(zip(score.ranks, score.token_ids, score.logprobs, strict=True))
    return TokenSeen(
        request_id=request_id,
        sample_index=index,
        token_id=token_id,
        logprob=score.logprobs[0],
        top=tuple(Scored(token, logprob) for _, token, logprob in top),
    )
