"""What one live request has produced, and how much of it was handed out."""

from collections.abc import Iterable, Sequence

from pagetwin.engine.beam_search import BeamSearch, Hypothesis
from pagetwin.engine.detokenizer import Detokenizer, TextStream, new_detokenizer
from pagetwin.engine.outputs import CompletionOutput, RequestOutput
from pagetwin.engine.request import Request
from pagetwin.engine.step import FinishedSequence, TokenLogprobs
from pagetwin.engine.tokenizer import Tokenizer


class _Sample:
    """One sample of a request: what it has produced, and how much of it was handed out."""

    def __init__(self, stream: TextStream) -> None:
        self.stream = stream
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.cumulative_logprob = 0.0
        self.finished: FinishedSequence | None = None
        self.num_sent_tokens = 0
        self.num_sent_chars = 0
        self.sent_finish = False

    @property
    def num_unsent_tokens(self) -> int:
        return len(self.token_ids) - self.num_sent_tokens

    def append(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        self.token_ids.append(token_id)
        if logprobs is not None:
            self.logprobs.append(logprobs)
            self.cumulative_logprob += logprobs.logprobs[0]

    def finish(self, finished: FinishedSequence) -> None:
        self.finished = finished
        self.stream.finish()

    def output(self, index: int, *, delta: bool, with_logprobs: bool) -> CompletionOutput:
        """The sample so far, or what is new of it; marks it as handed out."""
        first_token = self.num_sent_tokens if delta else 0
        first_char = self.num_sent_chars if delta else 0
        finished = self.finished
        output = CompletionOutput(
            index=index,
            text=self.stream.text[first_char : self.stream.num_visible],
            token_ids=tuple(self.token_ids[first_token:]),
            cumulative_logprob=self.cumulative_logprob if with_logprobs else None,
            logprobs=tuple(self.logprobs[first_token:]) if with_logprobs else None,
            finish_reason=finished.reason if finished is not None else None,
            stop_reason=finished.stop_reason if finished is not None else None,
        )
        self.num_sent_tokens = len(self.token_ids)
        self.num_sent_chars = self.stream.num_visible
        self.sent_finish = finished is not None
        return output


class LiveRequest:
    """A request that has not ended, with its samples or its beam search."""

    def __init__(
        self, request: Request, prompt: str | None, tokenizer: Tokenizer | None, max_model_len: int
    ) -> None:
        params = request.sampling_params
        self.request = request
        self.prompt = prompt
        self.started = False
        self.num_cached_tokens: int | None = None
        self.samples: list[_Sample] = []
        self.beam_search: BeamSearch | None = None
        self.search_end: FinishedSequence | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.sent_prompt_logprobs = False
        self._tokenizer = tokenizer if params.detokenize else None
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = [None] * request.num_prompt_tokens
        if request.beam_search is None:
            self.samples = [self._new_sample() for _ in range(request.num_samples)]
        else:
            room = max_model_len - request.num_prompt_tokens
            limit = room if params.max_tokens is None else min(params.max_tokens, room)
            self.beam_search = BeamSearch(request, max_tokens=limit)

    @property
    def is_finished(self) -> bool:
        if self.beam_search is not None:
            return self.search_end is not None
        return all(sample.finished is not None for sample in self.samples)

    def finish(self, index: int, finished: FinishedSequence) -> None:
        """Notes the end of a sample; the beams of a search end together."""
        if self.beam_search is not None:
            self.search_end = finished
        else:
            self.samples[index].finish(finished)

    def _new_sample(self) -> _Sample:
        params = self.request.sampling_params
        return _Sample(
            TextStream(
                self._new_detokenizer(),
                params.stop,
                include_stop=params.include_stop_str_in_output,
            )
        )

    def _new_detokenizer(self) -> Detokenizer | None:
        if self._tokenizer is None:
            return None
        skip = self.request.sampling_params.skip_special_tokens
        return new_detokenizer(self._tokenizer, skip_special_tokens=skip)

    def append(self, sample: _Sample, token_id: int, logprobs: TokenLogprobs | None) -> str | None:
        """Adds a sampled token; the stop string that it completes, if there is one.

        A token that ends the sample gives no text; only a stop token may, if it is asked for.
        """
        params = self.request.sampling_params
        sample.append(token_id, logprobs)
        may_stop = len(sample.token_ids) > params.min_tokens
        if may_stop and not params.ignore_eos and token_id in self.request.eos_token_ids:
            return None
        if may_stop and token_id in params.stop_token_ids:
            if params.include_stop_str_in_output:
                sample.stream.append(token_id, check_stops=False)
            return None
        return sample.stream.append(token_id, check_stops=may_stop)

    def take_prompt_logprobs(self, first: int, entries: Sequence[TokenLogprobs]) -> None:
        """Stores the entries of prompt positions `first` and on."""
        if self.prompt_logprobs is not None:
            entries = entries[: len(self.prompt_logprobs) - first]
            self.prompt_logprobs[first : first + len(entries)] = entries

    def is_due(self) -> bool:
        """Whether an output is to be handed out while the request goes on."""
        params = self.request.sampling_params
        ranked = params.num_samples > params.n
        if params.output_kind == "final_only" or ranked or self.beam_search is not None:
            return False
        return any(
            sample.num_unsent_tokens >= (params.stream_interval if sample.num_sent_tokens else 1)
            or (sample.finished is not None and not sample.sent_finish)
            for sample in self.samples
        )

    def output(self, *, finished: bool) -> RequestOutput:
        """Hands out an output of the kind that the request asks for."""
        delta = self.request.sampling_params.output_kind == "delta"
        prompt_logprobs = None
        if self.prompt_logprobs is not None and not (delta and self.sent_prompt_logprobs):
            prompt_logprobs = tuple(self.prompt_logprobs)
            self.sent_prompt_logprobs = True
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=tuple(self._beams() if self.beam_search is not None else self._completions()),
            finished=finished,
            num_cached_tokens=self.num_cached_tokens or 0,
            prompt_logprobs=prompt_logprobs,
        )

    def _completions(self) -> Iterable[CompletionOutput]:
        params = self.request.sampling_params
        delta = params.output_kind == "delta"
        samples = self.samples
        if params.num_samples > params.n:
            # Ranked: handed out once, at the end, the most likely first.
            delta = False
            samples = sorted(samples, key=lambda sample: -sample.cumulative_logprob)[: params.n]
        for index, sample in enumerate(samples):
            changed = sample.num_unsent_tokens or (sample.finished and not sample.sent_finish)
            if changed or not delta:
                yield sample.output(
                    index, delta=delta, with_logprobs=params.num_logprobs is not None
                )

    def _beams(self) -> Iterable[CompletionOutput]:
        assert self.beam_search is not None
        # What became of beams that no rule of the search ended.
        cut = self.search_end or FinishedSequence("", "abort")
        hypotheses = self.beam_search.best(self.request.sampling_params.n)
        for index, hypothesis in enumerate(hypotheses):
            reason = hypothesis.finish_reason
            yield CompletionOutput(
                index=index,
                text=self._beam_text(hypothesis),
                token_ids=hypothesis.token_ids,
                cumulative_logprob=hypothesis.cumulative_logprob,
                finish_reason=reason or cut.reason,
                stop_reason=self._stop_token(hypothesis) if reason else cut.stop_reason,
                score=hypothesis.score,
            )

    def _stop_token(self, hypothesis: Hypothesis) -> int | None:
        """The stop token that ended the hypothesis; None if EOS or the length did."""
        last = hypothesis.token_ids[-1] if hypothesis.token_ids else None
        params = self.request.sampling_params
        ended_by_eos = not params.ignore_eos and last in self.request.eos_token_ids
        return None if hypothesis.finish_reason != "stop" or ended_by_eos else last

    def _beam_text(self, hypothesis: Hypothesis) -> str:
        stream = TextStream(self._new_detokenizer())
        include = self.request.sampling_params.include_stop_str_in_output
        shown = hypothesis.token_ids
        if hypothesis.finish_reason == "stop":
            keep_last = include and self._stop_token(hypothesis) is not None
            shown = shown if keep_last else shown[:-1]
        for token_id in shown:
            stream.append(token_id)
        stream.finish()
        return stream.text
