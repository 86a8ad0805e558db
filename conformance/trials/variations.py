"""Random scenarios made richer in what is rare in them: names used again, several pictures."""

from random import Random

import msgspec

from pagetwin.conformance.properties import Violation
from pagetwin.conformance.scenario import AbortEvent, AnyEvent, Scenario, SubmitEvent
from pagetwin.conformance.trials.examples import random_scenario
from pagetwin.conformance.trials.scheduling import judge_engine
from pagetwin.engine.request import MediaSpan
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams


def judge_reused_ids(seed: int, index: int) -> list[Violation]:
    """A random scenario whose requests are submitted again and again, and aborted in between."""
    return judge_engine(again_and_again(random_scenario(seed, index), Random(f"{seed} {index}")))


def judge_pictures(seed: int, index: int) -> list[Violation]:
    """A random scenario whose requests show several pictures each, and say much the same."""
    random = Random(f"pictures {seed} {index}")
    return judge_engine(with_pictures(random_scenario(seed, index), random))


def with_pictures(scenario: Scenario, random: Random) -> Scenario:
    """The same requests with up to three pictures each, which lie close together, of a few kinds,
    and at a few places; most have the longest prompt of all, or the beginning of it."""
    longest = max((one.request.prompt_token_ids for one in scenario.requests), key=len)
    starts = [random.randrange(1 + len(longest)) for _ in range(2)]
    requests = []
    for one in scenario.requests:
        prompt = one.request.prompt_token_ids
        if prompt and random.random() < 0.7:
            prompt = longest[: len(longest) - random.choice((0, 0, 0, 1))] or longest
        media: list[MediaSpan] = []
        offset = random.choice(starts)
        for _ in range(random.randint(1, 3)):
            length = random.choice((1, 1, 2))
            if offset + length <= len(prompt):
                # A digest stands for one content, which has one length (docs/policy.md P4.6).
                digest = f"{random.choice(('cat', 'dog'))} of {length}"
                media.append(MediaSpan(digest=digest, offset=offset, length=length))
            offset += length + random.choice((0, 0, 1))
        request = msgspec.structs.replace(
            one.request, prompt_token_ids=prompt, media=tuple(media), cache_salt=None
        )
        requests.append(msgspec.structs.replace(one, request=request))
    return msgspec.structs.replace(scenario, requests=tuple(requests))


def judge_crowded_searches(seed: int, index: int) -> list[Violation]:
    """A random scenario of beam searches, in a pool that holds the largest of them and no more."""
    random = Random(f"searches {seed} {index}")
    return judge_engine(with_searches(random_scenario(seed, index), random))


def with_searches(scenario: Scenario, random: Random) -> Scenario:
    """The same prompts, their beginnings, as beam searches, some of whose rows give no token."""
    cache, limits = scenario.cache, scenario.scheduler
    limits = msgspec.structs.replace(
        limits,
        max_model_len=max(8, limits.max_model_len),
        max_num_seqs=max(4, limits.max_num_seqs),
        max_num_batched_tokens=max(8, limits.max_num_batched_tokens, limits.max_model_len),
    )
    requests, needed = [], 1
    for one in scenario.requests:
        prompt = one.request.prompt_token_ids[: random.randint(1, 2 * cache.block_size)] or (0,)
        prompt = prompt[: limits.max_model_len - 6]
        width, max_tokens = random.choice((1, 2, 2, 3)), random.randint(1, 5)
        num_slots = len(prompt) + max_tokens + limits.num_lookahead_slots
        needed = max(needed, width * -(-num_slots // cache.block_size))
        request = msgspec.structs.replace(
            one.request,
            prompt_token_ids=prompt,
            media=(),
            sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            beam_search=BeamSearchParams(beam_width=width),
        )
        requests.append(msgspec.structs.replace(one, request=request))
    names = [one.request.request_id for one in requests]
    return msgspec.structs.replace(
        scenario,
        cache=msgspec.structs.replace(cache, num_blocks=1 + needed + cache.watermark_blocks),
        scheduler=limits,
        requests=tuple(requests),
        failing_requests=tuple(name for name in names if random.random() < 0.15),
        vocab_size=max(4, scenario.vocab_size),
    )


def judge_lookahead(seed: int, index: int) -> list[Violation]:
    """A random scenario planned ahead, of requests that fork, each with slots for a long draft."""
    random = Random(f"lookahead {seed} {index}")
    return judge_engine(with_lookahead(random_scenario(seed, index), random))


def with_lookahead(scenario: Scenario, random: Random) -> Scenario:
    """The same requests with several samples each; steps hold few tokens but many slots."""
    cache, limits = scenario.cache, scenario.scheduler
    room = (cache.num_blocks - 1) * cache.block_size
    max_num_seqs = max(4, limits.max_num_seqs)
    tokens = max_num_seqs if limits.enable_chunked_prefill else limits.max_num_batched_tokens
    limits = msgspec.structs.replace(
        limits,
        async_scheduling=True,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_seqs, tokens),
        num_lookahead_slots=min(room - 1, random.randint(0, 3 * cache.block_size)),
    )
    requests = []
    for one in scenario.requests:
        if one.request.beam_search is None:
            params = one.request.sampling_params
            n = random.randint(1, 4)
            params = msgspec.structs.replace(params, n=n, best_of=None)
            request = msgspec.structs.replace(one.request, sampling_params=params)
            one = msgspec.structs.replace(one, request=request)
        requests.append(one)
    return msgspec.structs.replace(scenario, scheduler=limits, requests=tuple(requests))


def again_and_again(scenario: Scenario, random: Random) -> Scenario:
    """More submissions of the same requests, some of them right after an abort, in the rounds in
    which something happens or soon after."""
    events: list[AnyEvent] = list(scenario.events)
    rounds = [event.round for event in events]
    for one in scenario.requests:
        name = one.request.request_id
        for _ in range(random.choice((0, 1, 2, 4))):
            at = random.choice(rounds) + random.randrange(6)
            if random.random() < 0.5:
                events.append(AbortEvent(round=at, in_flight=_often(random), request_id=name))
            late = random.choice((0, 0, 1))
            events.append(SubmitEvent(round=at + late, in_flight=_often(random), request_id=name))
    return msgspec.structs.replace(scenario, events=tuple(events))


def _often(random: Random) -> bool:
    return random.random() < 0.5
