"""Observations: what an engine showed to its client, as versioned JSON Lines.

They are the black box's half of a history: everything here can be had over HTTP. Engines that
show their steps have the records of pagetwin.engine.trace beside them.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from pagetwin.engine.errors import TraceError

SCHEMA = "pagetwin.observations/1"


class Scored(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log-probability (natural logarithm)."""

    token_id: int
    logprob: float


class Observation(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Something seen. The order of a history is the order in which it was seen."""


class RequestObservation(Observation, frozen=True, kw_only=True):
    request_id: str


class Opened(Observation, frozen=True, kw_only=True, tag="opened"):
    """First line: which engine, and what it was asked for."""

    schema: str = SCHEMA
    engine: str
    version: str = ""
    model: str = ""
    knobs: dict[str, str] = {}


class Submitted(RequestObservation, frozen=True, kw_only=True, tag="submitted"):
    prompt_token_ids: tuple[int, ...] = ()
    prompt_text: str | None = None


class Refused(RequestObservation, frozen=True, kw_only=True, tag="refused"):
    """The engine would not take the request; nothing else follows of it."""

    error: str


class TokenSeen(RequestObservation, frozen=True, kw_only=True, tag="token"):
    """One output token of one sample. `top` are the most likely tokens, best first."""

    sample_index: int = 0
    token_id: int
    logprob: float | None = None
    top: tuple[Scored, ...] = ()


class TextSeen(RequestObservation, frozen=True, kw_only=True, tag="text"):
    """More text of one sample; the concatenation is its output."""

    sample_index: int = 0
    text: str


class PromptScored(RequestObservation, frozen=True, kw_only=True, tag="prompt_scored"):
    """Log-probabilities of prompt tokens 1, 2, ... given what stands before them."""

    logprobs: tuple[float, ...]


class CachedTokens(RequestObservation, frozen=True, kw_only=True, tag="cached_tokens"):
    """Prompt tokens that the engine says it found in its prefix cache, at first admission."""

    count: int


class Finished(RequestObservation, frozen=True, kw_only=True, tag="finished"):
    """A sample is complete. `reason` is "stop", "length" or "error", or the engine's own word."""

    sample_index: int = 0
    reason: str
    stop_reason: int | str | None = None


class Cancelled(RequestObservation, frozen=True, kw_only=True, tag="cancelled"):
    """The client gave the request up; no output of it may follow."""


class Failed(RequestObservation, frozen=True, kw_only=True, tag="failed"):
    """The engine ended the request with an error."""

    error: str


class BlockStored(Observation, frozen=True, kw_only=True, tag="block_stored"):
    """A full block can be hit from now on. `block_hash` is the engine's own, as text."""

    block_hash: str
    parent_hash: str | None = None
    token_ids: tuple[int, ...]


class BlockRemoved(Observation, frozen=True, kw_only=True, tag="block_removed"):
    block_hash: str


class CacheCleared(Observation, frozen=True, kw_only=True, tag="cache_cleared"):
    pass


AnyObservation = (
    Opened
    | Submitted
    | Refused
    | TokenSeen
    | TextSeen
    | PromptScored
    | CachedTokens
    | Finished
    | Cancelled
    | Failed
    | BlockStored
    | BlockRemoved
    | CacheCleared
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyObservation)


def output_tokens(observed: Iterable[AnyObservation]) -> dict[str, dict[int, list[int]]]:
    """Output token ids by request, then by sample."""
    outputs: dict[str, dict[int, list[int]]] = {}
    for one in observed:
        if isinstance(one, TokenSeen):
            samples = outputs.setdefault(one.request_id, {})
            samples.setdefault(one.sample_index, []).append(one.token_id)
    return outputs


def pieces_of(observed: Iterable[AnyObservation]) -> dict[str, int]:
    """In how many pieces each request's tokens came: between two of them something else was
    seen."""
    pieces: dict[str, int] = {}
    last = ""
    for one in observed:
        if isinstance(one, TokenSeen):
            pieces[one.request_id] = pieces.get(one.request_id, 0) + (one.request_id != last)
            last = one.request_id
        elif isinstance(one, RequestObservation) and one.request_id != last:
            last = ""
    return pieces


def encode_observations(observed: Iterable[AnyObservation]) -> bytes:
    """JSON Lines."""
    return b"".join(_encoder.encode(one) + b"\n" for one in observed)


def decode_observation(line: bytes | str, source: str) -> AnyObservation:
    """Reads one line. Raises TraceError, naming `source`, if it is not an observation."""
    try:
        one: AnyObservation = _decoder.decode(line)
    except msgspec.DecodeError as error:
        raise TraceError(f"{source}: not an observation ({error})") from None
    if isinstance(one, Opened) and one.schema != SCHEMA:
        raise TraceError(
            f"{source}: schema {one.schema!r}, this version reads {SCHEMA!r}; "
            "use the pagetwin version that wrote it"
        )
    return one


def read_observations(path: Path) -> Iterator[AnyObservation]:
    """Yields a file's observations. Raises TraceError, naming file and line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            one = decode_observation(line, f"{path}:{number}")
            if (number == 1) != isinstance(one, Opened):
                raise TraceError(f"{path}:{number}: the first line, and only it, must be 'opened'")
            yield one
