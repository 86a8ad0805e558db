"""What a request asks of sampling: every field, its range, and the checks.

A value is checked, and brought to one form, when the object is made, so that two spellings of
one wish are equal and a history holds one of them. What depends on the model is checked by
`check_against`, and what this engine cannot do yet is named by `unsupported_fields`.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from pagetwin.engine.output_constraints import RepetitionDetection, StructuredOutputs
from pagetwin.engine.sampling_checks import (
    check_flag,
    checked_bias,
    checked_ids,
    checked_integer,
    checked_real,
    checked_strings,
    refuse,
)

OutputKind = Literal["cumulative", "delta", "final_only"]

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy."""
LOWEST_TEMPERATURE = 0.01
"""Temperatures between greedy and this are raised to it: logits / T must stay finite."""
MAX_STOP_STRINGS = 4
MAX_LOGPROB_TOKEN_IDS = 128
MAX_SAMPLES = 16384

_REALS = {
    "temperature": (0.0, 2.0, "[]"),
    "top_p": (0.0, 1.0, "(]"),
    "min_p": (0.0, 1.0, "[]"),
    "presence_penalty": (-2.0, 2.0, "[]"),
    "frequency_penalty": (-2.0, 2.0, "[]"),
    "repetition_penalty": (0.0, float("inf"), "()"),
}
_INTEGERS: dict[str, tuple[int, int | None, str]] = {
    "n": (1, MAX_SAMPLES, "ask for at least one sample"),
    "top_k": (-1, None, "use 0 or -1 to switch it off"),
    "min_tokens": (0, None, "use 0 for no minimum"),
    "stream_interval": (1, None, "use 1 to stream every token"),
}
_OPTIONAL_INTEGERS: dict[str, tuple[int, int | None, str]] = {
    "best_of": (1, MAX_SAMPLES, "leave it None to draw n samples"),
    "seed": (-(2**63), 2**63 - 1, "use None or -1 for no seed of its own"),
    "max_tokens": (1, None, "leave it None to use the rest of the context"),
    "logprobs": (-1, None, "use -1 for the whole vocabulary, None for none"),
    "prompt_logprobs": (-1, None, "use -1 for the whole vocabulary, None for none"),
    "truncate_prompt_tokens": (-1, None, "use -1 for the longest prompt that fits, None for all"),
    "thinking_token_budget": (0, None, "leave it None for no budget"),
}
_FLAGS = (
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "detokenize",
)
_STRINGS = ("stop", "bad_words")
_IDS = ("stop_token_ids", "trace_decode_token_ids")
_OPTIONAL_IDS = ("logprob_token_ids", "allowed_token_ids")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request's sampling parameters; ranges are checked when it is made.

    Tuples may be given as lists, and one stop string as a plain string. Raises RequestError.
    """

    n: int = 1
    """Samples returned."""
    best_of: int | None = None
    """Samples drawn, at least n; the n with the highest cumulative logprob are returned."""
    temperature: float = 1.0
    """0 to 2. Below 1e-5: greedy, and top_p, top_k and min_p are reset."""
    top_p: float = 1.0
    """In (0, 1]: keep the smallest set of most likely tokens whose mass reaches it."""
    top_k: int = 0
    """Keep the k most likely tokens and those tied with the last; 0 (or -1) = off."""
    min_p: float = 0.0
    """Keep tokens at least this likely, relative to the most likely one."""
    presence_penalty: float = 0.0
    """-2 to 2, subtracted once from the logit of each token generated so far."""
    frequency_penalty: float = 0.0
    """-2 to 2, subtracted once for each time that a token was generated."""
    repetition_penalty: float = 1.0
    """Above 0. Prompt and generated tokens: logits > 0 are divided by it, others multiplied."""
    seed: int | None = None
    """64-bit. Equal seeds draw equal noise whatever the request's name; -1 = None."""
    stop: tuple[str, ...] = ()
    """At most 4 strings that end the output and are cut from it."""
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    """EOS and stop tokens are not sampled before this many output tokens."""
    max_tokens: int | None = 16
    """None: the rest of the context."""
    logprobs: int | None = None
    """Top log-probabilities beside the chosen token's; 0 = the chosen only, -1 = all."""
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] | None = None
    """At most 128 tokens whose log-probabilities are returned as well."""
    logit_bias: dict[int, float] | None = None
    """Added to logits; clamped to -100..100."""
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True
    truncate_prompt_tokens: int | None = None
    """Keep only the last tokens of the prompt; -1 = as many as fit."""
    output_kind: OutputKind = "cumulative"
    stream_interval: int = 1
    """Output tokens between two streamed updates."""
    structured_outputs: StructuredOutputs | None = None
    repetition_detection: RepetitionDetection | None = None
    thinking_token_budget: int | None = None
    trace_decode_token_ids: tuple[int, ...] = ()
    """Output position i takes the i-th of these ids, whatever the logits say; the reported
    log-probabilities are the model's."""
    extra_args: dict[str, Any] | None = None
    """For plugins."""

    def __post_init__(self) -> None:
        self._normalise_spellings()
        for field, (low, high, ends) in _REALS.items():
            self._set(field, checked_real(field, getattr(self, field), (low, high), ends))
        for field, (least, most, remedy) in (_INTEGERS | _OPTIONAL_INTEGERS).items():
            if getattr(self, field) is not None or field in _INTEGERS:
                value = checked_integer(field, getattr(self, field), (least, most), remedy)
                self._set(field, value)
        for field in _FLAGS:
            check_flag(field, getattr(self, field))
        for field in _STRINGS:
            self._set(field, checked_strings(field, getattr(self, field)))
        for field in _IDS + _OPTIONAL_IDS:
            if getattr(self, field) is not None or field in _IDS:
                self._set(field, checked_ids(field, getattr(self, field)))
        if self.logit_bias is not None:
            self._set("logit_bias", checked_bias("logit_bias", self.logit_bias))
        self._set("top_k", max(self.top_k, 0))
        self._set("seed", None if self.seed == -1 else self.seed)
        self._settle_temperature()
        self._check_combinations()

    def _set(self, field: str, value: Any) -> None:
        msgspec.structs.force_setattr(self, field, value)

    def _normalise_spellings(self) -> None:
        if isinstance(self.stop, str):
            self._set("stop", (self.stop,))
        for field in ("logprobs", "prompt_logprobs"):
            value = getattr(self, field)
            if isinstance(value, bool):
                self._set(field, 1 if value else None)
        for field in _STRINGS + _IDS:
            if getattr(self, field) is None:
                self._set(field, ())

    def _settle_temperature(self) -> None:
        if self.temperature < GREEDY_BELOW:
            for field, value in (
                ("temperature", 0.0),
                ("top_p", 1.0),
                ("top_k", 0),
                ("min_p", 0.0),
            ):
                self._set(field, value)
        elif self.temperature < LOWEST_TEMPERATURE:
            warnings.warn(
                f"temperature={self.temperature} is raised to {LOWEST_TEMPERATURE}, the lowest one "
                "that is not greedy; use 0 for greedy",
                stacklevel=3,
            )
            self._set("temperature", LOWEST_TEMPERATURE)

    def _check_combinations(self) -> None:
        if self.best_of is not None and self.best_of < self.n:
            refuse(
                "best_of", self.best_of, f"is below n={self.n}", "raise it to n, or leave it None"
            )
        if self.is_greedy and self.num_samples > 1:
            field = "n" if self.best_of is None else "best_of"
            limit = f"asks for several samples at temperature={self.temperature}"
            refuse(field, self.num_samples, limit, "greedy samples are all equal; use 1")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            limit = f"is above max_tokens={self.max_tokens}"
            refuse("min_tokens", self.min_tokens, limit, "lower it or raise max_tokens")
        if len(self.stop) > MAX_STOP_STRINGS:
            limit = f"has {len(self.stop)} strings, above {MAX_STOP_STRINGS}"
            refuse("stop", self.stop, limit, "keep the ones that matter")
        if self.stop and not self.detokenize:
            limit = "needs text, and detokenize=False"
            refuse("stop", self.stop, limit, "use stop_token_ids or detokenize")
        if self.truncate_prompt_tokens == 0:
            refuse("truncate_prompt_tokens", 0, "leaves no prompt", "use None for all of it")
        for field in _OPTIONAL_IDS:
            if getattr(self, field) == ():
                refuse(field, (), "is empty", "leave it None or name a token")
        asked = len(self.logprob_token_ids or ())
        if asked > MAX_LOGPROB_TOKEN_IDS:
            limit = f"is above the {MAX_LOGPROB_TOKEN_IDS} ids allowed"
            refuse("len(logprob_token_ids)", asked, limit, "ask for fewer")
        if self.output_kind not in ("cumulative", "delta", "final_only"):
            limit = "is not one of cumulative, delta, final_only"
            refuse("output_kind", self.output_kind, limit, "use cumulative")

    @property
    def num_samples(self) -> int:
        """Sequences that the request forks into."""
        return self.best_of if self.best_of is not None else self.n

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def num_logprobs(self) -> int | None:
        """Top log-probabilities that a sampler must return at each position (-1 = all).

        None is none at all. Ranking best_of samples needs the chosen token's, asked for or not.
        """
        if self.logprobs is not None:
            return self.logprobs
        ranked = self.best_of is not None and self.best_of > self.n
        return 0 if ranked or self.logprob_token_ids is not None else None


class BeamSearchParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A beam search instead of sampling; scores are cum_logprob / length ** length_penalty.

    max_tokens, min_tokens, EOS and the penalties are those of the request's SamplingParams.
    """

    beam_width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    """When a search with enough finished beams is over, as in transformers: True at once, False
    when the best running beam cannot win at its present length, "never" when it cannot at all."""

    def __post_init__(self) -> None:
        bounds = (1, MAX_SAMPLES)
        width = checked_integer("beam_width", self.beam_width, bounds, "use at least one beam")
        msgspec.structs.force_setattr(self, "beam_width", width)
        penalty = checked_real(
            "length_penalty", self.length_penalty, (float("-inf"), float("inf")), "()"
        )
        msgspec.structs.force_setattr(self, "length_penalty", penalty)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            limit = 'is not True, False or "never"'
            refuse("early_stopping", self.early_stopping, limit, "use False")


def unsupported_fields(
    params: SamplingParams, beam_search: BeamSearchParams | None = None
) -> tuple[str, ...]:
    """Fields that are set and that this engine would not honour; whoever submits refuses them.

    A beam search takes n, the hypotheses to return; it has no use for what shapes a random
    choice, for stop strings, or for log-probabilities beside its scores.
    """
    fields = ["structured_outputs", "repetition_detection", "thinking_token_budget", "extra_args"]
    fields += ["spaces_between_special_tokens"]
    if beam_search is not None:
        fields += ["best_of", "top_p", "top_k", "min_p", "stop"]
        fields += ["logprobs", "logprob_token_ids", "trace_decode_token_ids"]
    plain = SamplingParams()
    unsupported = [f for f in fields if getattr(params, f) != getattr(plain, f)]
    if beam_search is not None and params.temperature not in (0.0, plain.temperature):
        unsupported.append("temperature")
    return tuple(unsupported)


def check_against(
    params: SamplingParams, *, vocab_size: int, max_logprobs: int, max_model_len: int
) -> None:
    """Checks what depends on the model and the engine's limits. Raises RequestError."""
    remedy = f"the model's context is max_model_len={max_model_len} tokens"
    for field in ("max_tokens", "min_tokens", "truncate_prompt_tokens"):
        value = getattr(params, field)
        if value is not None and value > max_model_len:
            refuse(field, value, f"is above {max_model_len}", remedy)
    for field in ("logprobs", "prompt_logprobs"):
        value = getattr(params, field)
        wanted = vocab_size if value == -1 else value or 0
        if wanted > max_logprobs:
            limit = f"asks for {wanted} tokens a position, above max_logprobs={max_logprobs}"
            refuse(field, value, limit, "ask for fewer, or start the engine with a higher limit")
    for field, ids in _token_ids(params):
        outside = next((i for i in ids if i >= vocab_size), None)
        if outside is not None:
            limit = f"is outside the vocabulary of {vocab_size} tokens"
            refuse(field, outside, limit, f"use ids from 0 to {vocab_size - 1}")


def _token_ids(params: SamplingParams) -> Sequence[tuple[str, Sequence[int]]]:
    fields = _IDS + _OPTIONAL_IDS
    named = [(field, getattr(params, field) or ()) for field in fields]
    return [*named, ("logit_bias", tuple(params.logit_bias or ()))]
