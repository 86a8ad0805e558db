"""What a request asks of sampling: every field, its range, and the checks."""

from typing import Literal

import msgspec

OutputKind = Literal["cumulative", "delta", "final_only"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request's sampling parameters; ranges are checked when it is made."""

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True
    truncate_prompt_tokens: int | None = None
    output_kind: OutputKind = "cumulative"
    stream_interval: int = 1

    @property
    def num_samples(self) -> int:
        """Sequences that the request forks into."""
        return self.best_of if self.best_of is not None else self.n


class BeamSearchParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A beam search instead of sampling; scores are cum_logprob / length ** length_penalty."""

    beam_width: int
    length_penalty: float = 1.0
    early_stopping: bool = False
