"""Requests whose prompts say where each token stands; prefixes are shared on purpose."""

from random import Random

import msgspec

from pagetwin.conformance.provenance.labels import Labels
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams


class WorkloadShape(msgspec.Struct, frozen=True, kw_only=True):
    """How large a workload is, and where its lengths have edges."""

    num_rounds: int = 3
    """Rounds: all requests of one are submitted at once; the cache lives on to the next."""
    requests_per_round: int = 8
    num_families: int = 3
    """Prefixes that requests share."""
    block_size: int = 16
    """Lengths gather at its multiples, one more, and one less."""
    max_output_tokens: int = 24


def draw_rounds(
    random: Random, labels: Labels, shape: WorkloadShape, *, min_prompt_tokens: int
) -> list[list[Request]]:
    """Greedy requests, round by round, none of which stops before max_tokens.

    Half begin with part of a family's prefix and go on alone; some repeat an earlier prompt whole
    (A, B, A). Prompts have min_prompt_tokens to labels.span tokens. Raises ValueError where the
    vocabulary has too few labels.
    """
    total = shape.num_rounds * shape.requests_per_round
    if labels.num_owners < shape.num_families + total or labels.span < min_prompt_tokens:
        raise ValueError(
            f"{shape.num_families} prefixes and {total} requests with prompts from "
            f"{min_prompt_tokens} to {labels.span} tokens do not fit a vocabulary of "
            f"{labels.vocab_size} tokens; use fewer or shorter requests"
        )
    rounds: list[list[Request]] = []
    earlier: list[tuple[int, ...]] = []
    for number in range(shape.num_rounds):
        requests: list[Request] = []
        for index in range(shape.requests_per_round):
            owner = shape.num_families + number * shape.requests_per_round + index
            if earlier and random.random() < 0.25:
                prompt = random.choice(earlier)
            else:
                prompt = _prompt(random, labels, shape, owner, min_prompt_tokens)
            requests.append(_request(random, shape, owner, prompt))
        earlier += [request.prompt_token_ids for request in requests]
        rounds.append(requests)
    return rounds


def _prompt(
    random: Random, labels: Labels, shape: WorkloadShape, owner: int, shortest: int
) -> tuple[int, ...]:
    length = _length(random, shape.block_size, shortest, labels.span)
    shared = 0
    if random.random() < 0.5:
        shared = min(length, _length(random, shape.block_size, 1, labels.span))
    family = random.randrange(shape.num_families)
    return labels.prompt((family, 0, shared), (owner, shared, length))


def _length(random: Random, block_size: int, low: int, high: int) -> int:
    """A length in low..high, most often at a block's edge or one beside it."""
    length = random.randint(low, high)
    if random.random() < 0.6:
        length = length // block_size * block_size + random.choice((-1, 0, 1))
    return min(high, max(low, length))


def _request(random: Random, shape: WorkloadShape, owner: int, prompt: tuple[int, ...]) -> Request:
    num_tokens = random.randint(1, shape.max_output_tokens)
    params = SamplingParams(
        temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
    )
    return Request(
        request_id=f"r{owner}",
        prompt_token_ids=prompt,
        sampling_params=params,
        # The order of submission, for policies that go by arrival.
        arrival_s=float(owner),
    )
