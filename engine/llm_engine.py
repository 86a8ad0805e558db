"""The engine as one object: decides what a submission becomes, and turns steps into outputs."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from pagetwin.engine.beam_search import num_candidates
from pagetwin.engine.config import EngineConfig, ModelConfig
from pagetwin.engine.core import CompletedStep, EngineCore
from pagetwin.engine.errors import ConfigError, RequestError
from pagetwin.engine.output_processor import OutputProcessor
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import (
    BeamSearchParams,
    SamplingParams,
    check_against,
    unsupported_fields,
)
from pagetwin.engine.step import Executor
from pagetwin.engine.tokenizer import ChatMessage, Tokenizer, load_tokenizer
from pagetwin.engine.trace import HistoryWriter

if TYPE_CHECKING:
    from pagetwin.engine.models.loader import LoadedModel

Prompt = str | Sequence[int] | Sequence[ChatMessage]
"""Text, token ids, or the messages of a chat ({"role": ..., "content": ...})."""


class LLMEngine:
    """Requests in, outputs out, one step at a time.

    `executor` runs the plans: a model runner, or anything else that does (the fingerprint
    executor needs no torch). `tokenizer` is None to work with token ids alone. `clock`, in seconds,
    dates requests that come without an arrival time, and measures.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        *,
        vocab_size: int,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: Sequence[int] = (),
        history: HistoryWriter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.eos_token_ids = tuple(eos_token_ids)
        self._processor = OutputProcessor(tokenizer, max_model_len=config.scheduler.max_model_len)
        self.core = EngineCore(
            config, executor, processor=self._processor, history=history, clock=clock
        )
        self.on_step: Callable[[CompletedStep], None] | None = None
        """Sees each step that ends, before its outputs are made; for measurements."""
        self._clock = clock
        # Outputs of aborted requests, until the next step hands them out.
        self._pending: list[RequestOutput] = []

    @classmethod
    def from_config(
        cls,
        config: EngineConfig,
        *,
        loaded: "LoadedModel | None" = None,
        history: HistoryWriter | None = None,
    ) -> "LLMEngine":
        """Loads the model (unless `loaded`) and its tokenizer, and makes the runner.

        Raises ConfigError if the configuration names no model, ModelError if the model or its
        tokenizer cannot be read.
        """
        # Here and not above, so that an engine over any other executor needs no torch.
        from pagetwin.engine.factory import build_runner, resolve_device
        from pagetwin.engine.models.loader import load_model

        if config.model is None:
            raise ConfigError("config.model is None; name the model that the engine is to run")
        if loaded is None:
            loaded = load_model(config.model, resolve_device(config.device))
        runner = build_runner(config, loaded)
        runner.warm_up()
        spec = loaded.spec
        tokenizer = tokenizer_for(config.model, loaded)
        eos_token_ids = spec.eos_token_ids
        if not eos_token_ids and tokenizer is not None:
            eos_token_ids = tokenizer.eos_token_ids
        return cls(
            config,
            runner,
            vocab_size=spec.vocab_size,
            tokenizer=tokenizer,
            eos_token_ids=eos_token_ids,
            history=history,
        )

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        beam_search: BeamSearchParams | None = None,
        arrival_s: float | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> None:
        """Submits a request; a beam search takes max_tokens, n and the like from `params`.

        Raises RequestError, and changes nothing, if the request cannot be served.
        """
        if request_id in self._processor:
            raise RequestError(
                f"request_id={request_id!r} belongs to a request that is not finished; "
                "choose another one, or abort that request first"
            )
        if priority != 0 and self.config.scheduler.policy == "fcfs":
            raise RequestError(
                f"priority={priority} has no effect under scheduler.policy='fcfs'; leave it 0, or "
                "start the engine with policy='priority'"
            )
        params = SamplingParams() if params is None else params
        self._check_params(params, beam_search)
        text, token_ids = self._resolve_prompt(prompt)
        request = Request(
            request_id=request_id,
            prompt_token_ids=self._truncated(token_ids, params.truncate_prompt_tokens),
            sampling_params=params,
            beam_search=beam_search,
            arrival_s=self._clock() if arrival_s is None else arrival_s,
            priority=priority,
            eos_token_ids=self.eos_token_ids,
            cache_salt=cache_salt,
            bad_words_token_ids=self._bad_words(params.bad_words),
        )
        self._take(request, text)

    def submit(self, request: Request) -> None:
        """Submits a request as it is: token ids, resolved bad words, EOS ids, arrival and all.

        For those who hold requests as data. Raises RequestError, and changes nothing, if the
        request cannot be served.
        """
        if request.request_id in self._processor:
            raise RequestError(f"request_id={request.request_id!r} is not finished; choose another")
        self._check_params(request.sampling_params, request.beam_search)
        self._checked_ids(request.prompt_token_ids)
        self._take(request, None)

    def _take(self, request: Request, text: str | None) -> None:
        if request.beam_search is not None:
            self._check_beam_search(request, request.beam_search)
        self.core.add_request(request)
        self._processor.add_request(request, text)

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """Ends requests now; their last outputs, with reason "abort", come with the next step.

        Ids that are unknown or finished are ignored.
        """
        for request_id in [request_ids] if isinstance(request_ids, str) else request_ids:
            self.core.abort_request(request_id)
            output = self._processor.abort(request_id)
            if output is not None:
                self._pending.append(output)

    def step(self) -> list[RequestOutput]:
        """Runs one step; the outputs of the requests that it changed, as they asked for them."""
        return self._outputs_after(self.core.step())

    def finish_step(self) -> list[RequestOutput]:
        """Likewise for a step that `core.start_step` began."""
        return self._outputs_after(self.core.finish_step())

    def _outputs_after(self, completed: CompletedStep | None) -> list[RequestOutput]:
        outputs, self._pending = self._pending, []
        if completed is not None:
            if self.on_step is not None:
                self.on_step(completed)
            ended = [self._processor.fail(name, completed.error) for name in completed.failed]
            outputs += [output for output in ended if output is not None]
            outputs += self._processor.collect(completed.update)
        return outputs

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything left to run or to hand out."""
        return bool(self._pending) or self.core.has_unfinished_requests()

    def get_num_unfinished_requests(self) -> int:
        return len(self._processor)

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached blocks; False, and nothing changes, while sequences hold blocks."""
        return self.core.reset_prefix_cache()

    def _check_params(self, params: SamplingParams, beam_search: BeamSearchParams | None) -> None:
        unsupported = unsupported_fields(params, beam_search)
        if unsupported:
            where = "a beam search" if beam_search is not None else "this engine"
            raise RequestError(
                f"{', '.join(unsupported)}: not supported by {where}; leave them at their defaults"
            )
        check_against(
            params,
            vocab_size=self.vocab_size,
            max_logprobs=self.config.max_logprobs,
            max_model_len=self.config.scheduler.max_model_len,
        )
        if params.output_kind == "delta" and params.num_samples > params.n:
            raise RequestError(
                f"best_of={params.best_of} with n={params.n} is ranked at the end and cannot be "
                'streamed; use output_kind="final_only", or drop best_of'
            )
        for field in ("stop", "bad_words"):
            if getattr(params, field) and self.tokenizer is None:
                raise RequestError(
                    f"{field}={getattr(params, field)!r} needs a tokenizer and this engine has "
                    "none; use token ids, or start it without skip_tokenizer"
                )

    def _check_beam_search(self, request: Request, beam_search: BeamSearchParams) -> None:
        width, n = beam_search.beam_width, request.sampling_params.n
        if n > width:
            raise RequestError(
                f"n={n} is above beam_width={width}; a search returns at most its beams"
            )
        needed = num_candidates(request)
        if needed > self.vocab_size:
            raise RequestError(
                f"beam_width={width} looks at {needed} continuations of a beam, above the "
                f"vocabulary of {self.vocab_size} tokens; use a smaller width"
            )

    def _resolve_prompt(self, prompt: Prompt) -> tuple[str | None, Sequence[int]]:
        """The prompt as (text if there is one, token ids)."""
        if isinstance(prompt, str):
            return prompt, self._need_tokenizer().encode(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            messages = [m for m in prompt if isinstance(m, Mapping)]
            tokenizer = self._need_tokenizer()
            text = tokenizer.apply_chat_template(messages)
            return text, tokenizer.encode(text, add_special_tokens=False)
        return None, self._checked_ids(prompt)

    def _checked_ids(self, prompt: Sequence[object]) -> Sequence[int]:
        """The prompt as it is. Raises RequestError, naming the first token that is no id."""
        # Prompts are long, so ids are looked at one by one only to find out which one is wrong.
        if set(map(type, prompt)) <= {int}:
            token_ids = cast("Sequence[int]", prompt)
            if not token_ids or (min(token_ids) >= 0 and max(token_ids) < self.vocab_size):
                return token_ids
        for position, token in enumerate(prompt):
            if type(token) is not int or not 0 <= token < self.vocab_size:
                raise RequestError(
                    f"prompt token {position} is {token!r}, not an id of the vocabulary; use ids "
                    f"from 0 to {self.vocab_size - 1}"
                )
        raise AssertionError("every token is an id after all")

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(
                "the prompt is text and this engine has no tokenizer; give token ids, or start "
                "it without skip_tokenizer"
            )
        return self.tokenizer

    def _truncated(self, token_ids: Sequence[int], limit: int | None) -> tuple[int, ...]:
        if limit == -1:
            limit = self.config.scheduler.max_model_len - 1
        return tuple(token_ids if limit is None else token_ids[-limit:])

    def _bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Each word's token ids at the start of a text and after a space, each form once."""
        if not words:
            return ()
        tokenizer = self._need_tokenizer()
        forms = [form for word in words for form in (word, " " + word.lstrip())]
        encoded = (tuple(tokenizer.encode(f, add_special_tokens=False)) for f in forms)
        return tuple(dict.fromkeys(ids for ids in encoded if ids))


def tokenizer_for(config: ModelConfig, loaded: "LoadedModel") -> Tokenizer | None:
    """The tokenizer that the configuration asks for; by default the one beside the model."""
    if config.skip_tokenizer:
        return None
    return load_tokenizer(config.tokenizer or loaded.folder, vocab_size=loaded.spec.vocab_size)
