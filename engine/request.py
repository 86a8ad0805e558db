"""What a user asked, as frozen data: shared by the engine, its twin and the harness."""

import msgspec

from pagetwin.engine.errors import RequestError
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams


class MediaSpan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prompt positions [offset, offset + length) that stand for a piece of media."""

    digest: str
    offset: int
    length: int


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request, ready to be scheduled.

    The prompt is token ids (int, each in [0, vocabulary)); `arrival_s` is on the clock of
    whoever drives the engine and only orders requests.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling_params: SamplingParams = SamplingParams()
    beam_search: BeamSearchParams | None = None
    arrival_s: float = 0.0
    priority: int = 0
    eos_token_ids: tuple[int, ...] = ()
    cache_salt: str | None = None
    adapter_id: str | None = None
    media: tuple[MediaSpan, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    """`sampling_params.bad_words` as token ids, resolved by whoever holds the tokenizer."""

    def __post_init__(self) -> None:
        if self.sampling_params.bad_words and not self.bad_words_token_ids:
            raise RequestError(
                f"request {self.request_id!r}: bad_words={list(self.sampling_params.bad_words)} "
                "have no token ids; give bad_words_token_ids, or submit through LLMEngine, which "
                "looks them up"
            )

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_samples(self) -> int:
        """Sequences that the request forks into: beams of a beam search, else samples."""
        if self.beam_search is not None:
            return self.beam_search.beam_width
        return self.sampling_params.num_samples


def sequence_id(request_id: str, sample_index: int) -> str:
    """Name of one sample's sequence (docs/policy.md P1.6)."""
    return f"{request_id}/{sample_index}"
