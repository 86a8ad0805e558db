"""What a client can check of its own requests, from observations alone."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pagetwin.conformance.observation import (
    AnyObservation,
    Cancelled,
    Failed,
    Finished,
    Refused,
    RequestObservation,
    Submitted,
    TextSeen,
    TokenSeen,
)
from pagetwin.conformance.properties import Violation, violation
from pagetwin.engine.request import Request


@dataclass
class _Sample:
    tokens: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    """Reasons, in order; a right engine gives one at most."""


@dataclass
class _Seen:
    """All that came back of one request."""

    samples: dict[int, _Sample] = field(default_factory=dict)
    submitted: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: bool = False
    late: list[str] = field(default_factory=list)
    """Events of samples that had ended, or of a request that was cancelled or never submitted."""

    def sample(self, index: int) -> _Sample:
        return self.samples.setdefault(index, _Sample())


def check_client(
    observed: Sequence[AnyObservation],
    requests: Mapping[str, Request],
    *,
    max_model_len: int | None = None,
) -> list[Violation]:
    """Violations of the properties life.* that need no more than a client has.

    The observations must be complete: of requests that have all ended. `max_model_len` None
    means that a context that ends early cannot be told from a sample cut short.
    """
    seen = _gather(observed)
    found: list[Violation] = []
    for request_id, request in requests.items():
        one = seen.pop(request_id, _Seen())
        found += _judge_ends(request, one)
        if request.beam_search is None:
            for index, sample in one.samples.items():
                found += _judge_length(request, index, sample, max_model_len)
                found += _judge_stop(request, index, sample)
    for request_id in seen:
        found.append(
            violation("life.exactly-once", -1, "an event of no known request", request=request_id)
        )
    return found


def count_client_goals(
    observed: Sequence[AnyObservation], requests: Mapping[str, Request]
) -> Counter[str]:
    """How often each thing happened that the properties are about."""
    goals: Counter[str] = Counter()
    with_tokens: set[str] = set()
    for one in observed:
        if isinstance(one, TokenSeen | TextSeen):
            with_tokens.add(one.request_id)
        elif isinstance(one, Cancelled):
            goals["cancelled while running"] += one.request_id in with_tokens
        elif isinstance(one, Finished):
            goals["requests that ended"] += 1
            goals["ends by length"] += one.reason == "length"
            request = requests.get(one.request_id)
            stops = request is not None and bool(_stop_tokens(request))
            goals["ends by stop token"] += one.reason == "stop" and stops
    return goals


def _gather(observed: Sequence[AnyObservation]) -> dict[str, _Seen]:
    seen: dict[str, _Seen] = {}
    for event in observed:
        if not isinstance(event, RequestObservation):
            continue
        one = seen.setdefault(event.request_id, _Seen())
        index = getattr(event, "sample_index", None)
        ended = index is not None and bool(one.sample(index).ends)
        if ended or (index is not None and one.cancelled) or not (one.submitted or _opens(event)):
            one.late.append(type(event).__name__)
        if isinstance(event, Submitted):
            one.submitted += 1
        elif isinstance(event, Refused):
            one.refused += 1
        elif isinstance(event, Failed):
            one.failed += 1
        elif isinstance(event, Cancelled):
            one.cancelled = True
        elif isinstance(event, TokenSeen):
            one.sample(event.sample_index).tokens.append(event.token_id)
        elif isinstance(event, Finished):
            one.sample(event.sample_index).ends.append(event.reason)
    return seen


def _opens(event: RequestObservation) -> bool:
    return isinstance(event, Submitted)


def _judge_ends(request: Request, one: _Seen) -> Iterator[Violation]:
    request_id = request.request_id
    if one.late:
        yield violation(
            "life.silent-after-end",
            -1,
            "something came of a sample that had ended, or of a cancelled request",
            request=request_id,
            events=one.late[:5],
        )
    whole = one.refused + one.failed
    too_many = {i: sample.ends for i, sample in one.samples.items() if len(sample.ends) > 1}
    if one.submitted != 1 or whole > 1 or too_many:
        yield violation(
            "life.exactly-once",
            -1,
            "a request was not submitted once, or a sample ended more than once",
            request=request_id,
            submitted=one.submitted,
            refused=one.refused,
            failed=one.failed,
            ends=too_many,
        )
    num_ended = sum(bool(sample.ends) for sample in one.samples.values())
    must_end = request.beam_search is None and not (whole or one.cancelled)
    if must_end and num_ended != request.num_samples:
        yield violation(
            "life.exactly-once",
            -1,
            "samples did not end",
            request=request_id,
            samples=request.num_samples,
            ended=num_ended,
        )
    if one.refused and num_ended:
        yield violation(
            "life.exactly-once", -1, "a refused request ended as well", request=request_id
        )


def _judge_length(
    request: Request, index: int, sample: _Sample, max_model_len: int | None
) -> Iterator[Violation]:
    limit = request.sampling_params.max_tokens
    length = len(sample.tokens)
    facts = {"request": request.request_id, "sample": index, "tokens": length, "max_tokens": limit}
    if limit is not None and length > limit:
        yield violation("life.length", -1, "a sample has too many tokens", **facts)
    elif sample.ends == ["length"] and limit is not None and length < limit:
        room = None if max_model_len is None else max_model_len - request.num_prompt_tokens
        if room is None or length < room:
            yield violation("life.length", -1, "a sample was cut short", room=room, **facts)


def _stop_tokens(request: Request) -> set[int]:
    params = request.sampling_params
    eos = () if params.ignore_eos else request.eos_token_ids
    return {*params.stop_token_ids, *eos}


def _judge_stop(request: Request, index: int, sample: _Sample) -> Iterator[Violation]:
    stops = _stop_tokens(request)
    if not stops or request.sampling_params.stop:
        # A stop string ends a sample at any token; text is judged elsewhere.
        return
    minimum = request.sampling_params.min_tokens
    # Engines differ in whether the token that fills min_tokens may stop: both are right here.
    at = [i for i, token in enumerate(sample.tokens) if token in stops and i >= minimum]
    last = len(sample.tokens) - 1
    may_stop = last + 1 >= minimum and last >= 0 and sample.tokens[last] in stops
    facts = {"request": request.request_id, "sample": index, "tokens": sample.tokens[-8:]}
    if at and at[0] != last:
        yield violation(
            "life.stop-token", -1, "a sample went on after a stop token", position=at[0], **facts
        )
    elif sample.ends == ["stop"] and not may_stop:
        yield violation("life.stop-token", -1, "a sample stopped at no stop token", **facts)
