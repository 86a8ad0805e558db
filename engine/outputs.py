"""What a caller gets: the plain data of a request's output."""

import msgspec

from pagetwin.engine.step import FinishReason, TokenLogprobs


class CompletionOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One sample's output. With output_kind "delta": what is new since the last one."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    """The token that ended it (EOS or a stop token) included."""
    cumulative_logprob: float | None = None
    """Sum over all the sample's tokens so far, in every output kind; None if not asked for."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One entry per token of `token_ids`."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop token's id or the stop string, or what went wrong for "error"; else None."""
    score: float | None = None
    """A beam search's length-normalised score of a finished hypothesis."""

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What a request has produced."""

    request_id: str
    prompt: str | None
    """None where the prompt was given as token ids."""
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    """By index. With output_kind "delta": the samples that changed."""
    finished: bool
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache when the request first ran."""
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    """One entry per prompt token, None for the first. With output_kind "delta": in the first
    output only."""
