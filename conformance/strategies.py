"""Hypothesis strategies: whole scenarios, shaped so that rare things happen often.

Pools are small, tokens few, lengths near block edges and prompts related, so that prefixes meet,
blocks run short, and every path of the policy is walked within a few dozen examples. Everything
shrinks towards one request with a short prompt of zeros, submitted in round 0, on a configuration
with every feature off.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from pagetwin.conformance.scenario import (
    AbortEvent,
    AnyEvent,
    PreemptEvent,
    ResetEvent,
    Scenario,
    ScenarioRequest,
    SubmitEvent,
)
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import MediaSpan, Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams

BLOCK_SIZES = (2, 1, 3, 4, 16)
MAX_REQUESTS = 7
LAST_ROUND = 12
KINDS = ("fresh", "same", "longer", "prefix", "diverging")
"""How a prompt is made of those before it."""
GAPS = (0, 0, 0, 1, 1, 2, 6)
"""Rounds between two submissions."""
SPARSE_VOCABULARY = (0, 256, 512, 1, 257)
"""Token ids that are equal in their low byte, for prompts of a wide vocabulary."""


def _often(draw: st.DrawFn, numerator: int, denominator: int) -> bool:
    """True in about numerator of denominator draws; shrinks to False."""
    return draw(st.integers(0, denominator - 1)) >= denominator - numerator


@st.composite
def caches(draw: st.DrawFn) -> CacheConfig:
    """A pool of 3 to 12 blocks of a size in {1, 2, 3, 4, 16}, with a host pool that is absent,
    tiny or ample, and any of the cache's features. Shrinks to 3 blocks of 2 and no feature."""
    block_size = draw(st.sampled_from(BLOCK_SIZES))
    num_blocks = draw(st.integers(3, 12))
    caching = _often(draw, 3, 4)
    return CacheConfig(
        num_blocks=num_blocks,
        block_size=block_size,
        num_host_blocks=draw(st.sampled_from((0, 1, 2, 4, 12, 12))),
        enable_prefix_caching=caching,
        enable_partial_hits=caching and _often(draw, 3, 4),
        watermark_blocks=draw(st.sampled_from((0, 0, 0, 1, 2))) if num_blocks > 3 else 0,
        sliding_window=draw(st.sampled_from((0, 0, 0, 0, 1, block_size, 2 * block_size + 1))),
    )


@st.composite
def schedulers(draw: st.DrawFn, cache: CacheConfig) -> SchedulerConfig:
    """Limits near what the pool can hold: max_model_len around its tokens, budgets from a few
    tokens up, both policies, both preemption modes, chunked or not, synchronous or not."""
    room = (cache.num_blocks - 1) * cache.block_size
    max_model_len = max(
        2, draw(st.sampled_from((room, room + 1, room // 2 + 1, 2 * room // 3 + 1)))
    )
    max_num_seqs = draw(st.sampled_from((4, 1, 2, 3, 8, 8)))
    chunked = not _often(draw, 1, 4)
    budgets = (max_num_seqs, max_num_seqs + 1, 2 * cache.block_size, max_model_len, 3 * room)
    tokens = max(max_num_seqs, draw(st.sampled_from(budgets)))
    threshold = draw(st.sampled_from((0, 0, 1, cache.block_size, cache.block_size + 1)))
    lookahead = draw(st.sampled_from((0, 0, 0, 0, 1, 2, cache.block_size)))
    return SchedulerConfig(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=tokens if chunked else max(tokens, max_model_len),
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=min(threshold, max_model_len) if chunked else 0,
        policy=draw(st.sampled_from(("fcfs", "priority"))),
        preemption_mode=draw(st.sampled_from(("recompute", "swap"))),
        num_lookahead_slots=lookahead if lookahead < room else 0,
        async_scheduling=draw(st.booleans()),
        wait_for_prefix=draw(st.booleans()),
    )


@st.composite
def prompts(
    draw: st.DrawFn,
    cache: CacheConfig,
    vocabulary: Sequence[int],
    count: int,
    kinds: Sequence[str] = KINDS,
) -> list[list[int]]:
    """`count` prompts: fresh ones with lengths k*B - 1, k*B, k*B + 1, and ones made of an earlier
    one: the same again, a prefix of it, it and more, or it with one token changed. A later prompt
    may return to any earlier one (the A-B-A motif). Shrinks to prompts of one zero."""
    tokens = st.sampled_from(vocabulary)
    room = (cache.num_blocks - 1) * cache.block_size
    made: list[list[int]] = []
    for _ in range(count):
        blocks = draw(st.integers(0, 3))
        edge = draw(st.integers(-1, 1))
        length = min(max(1, blocks * cache.block_size + edge), room + 1)
        kind = draw(st.sampled_from(kinds))
        if not made or kind == "fresh":
            made.append(draw(st.lists(tokens, min_size=length, max_size=length)))
            continue
        base = draw(st.sampled_from(made))
        if kind == "longer":
            made.append([*base, *draw(st.lists(tokens, min_size=1, max_size=length))])
        elif kind == "prefix":
            made.append(base[: draw(st.integers(1, max(1, len(base))))])
        elif kind == "diverging":
            place = draw(st.integers(0, len(base) - 1)) if base else 0
            after = vocabulary.index(base[place]) + 1 if base else 0
            other = vocabulary[after % len(vocabulary)]
            made.append([*base[:place], other, *base[place + 1 :]])
        else:
            made.append(list(base))
    return made


@st.composite
def sampling_params(draw: st.DrawFn, vocab_size: int, limits: SchedulerConfig) -> SamplingParams:
    """Lengths from 1 token to more than fits, stop ids likely to be met (the vocabulary is tiny),
    min_tokens, n and best_of up to 4, and now and then prompt logprobs or a stop string."""
    max_tokens = draw(
        st.one_of(
            st.integers(1, 9), st.integers(1, limits.max_model_len), st.sampled_from((None, 1))
        )
    )
    samples = draw(st.sampled_from((1, 1, 1, 2, 3, 4)))
    if not _often(draw, 1, 8):
        samples = min(samples, limits.max_num_seqs)
    best_of = draw(st.sampled_from((None, None, None, samples, samples + 1)))
    stop_ids = st.lists(st.integers(0, vocab_size - 1), max_size=1)
    return SamplingParams(
        n=samples,
        best_of=best_of,
        max_tokens=max_tokens,
        min_tokens=min(draw(st.sampled_from((0, 0, 1, 3))), max_tokens or 3),
        ignore_eos=draw(st.booleans()),
        stop_token_ids=tuple(draw(stop_ids)) if _often(draw, 1, 4) else (),
        stop=("halt",) if _often(draw, 1, 8) else (),
        prompt_logprobs=1 if _often(draw, 1, 8) else None,
        seed=draw(st.integers(0, 3)),
    )


@st.composite
def requests(
    draw: st.DrawFn,
    name: str,
    prompt: list[int],
    vocab_size: int,
    limits: SchedulerConfig,
    beams_in_12: int = 2,
    marks_in_12: int = 1,
    spot: int = 0,
) -> Request:
    """One request with that prompt; with odds of `marks_in_12` each with a salt, an adapter (which
    may be spelled alike) and a medium at `spot` or anywhere, with odds of `beams_in_12` as a beam
    search. Arrival times and priorities repeat, so that ties are broken by the id. Some requests
    can never run: their refusal is compared too."""
    params = draw(sampling_params(vocab_size, limits))
    beam: BeamSearchParams | None = None
    if _often(draw, beams_in_12, 12):
        beam = BeamSearchParams(
            beam_width=draw(st.sampled_from((2, 2, 1, 3))), early_stopping=draw(st.booleans())
        )
        params = SamplingParams(max_tokens=draw(st.integers(1, 5)), ignore_eos=draw(st.booleans()))
    media: tuple[MediaSpan, ...] = ()
    if prompt and _often(draw, marks_in_12, 12):
        offset = draw(st.one_of(st.just(spot), st.integers(0, len(prompt) - 1)))
        offset = min(offset, len(prompt) - 1)
        length = draw(st.one_of(st.just(1), st.integers(1, len(prompt) - offset)))
        # A digest stands for one content, which has one length (docs/policy.md P4.6).
        digest = f"{draw(st.sampled_from(('cat', 'dog')))} of {length}"
        media = (MediaSpan(digest=digest, offset=offset, length=length),)
    return Request(
        request_id=name,
        prompt_token_ids=tuple(prompt),
        sampling_params=params,
        beam_search=beam,
        arrival_s=float(draw(st.integers(0, 2))),
        priority=draw(st.integers(0, 2)),
        cache_salt=draw(st.sampled_from(("a", "b"))) if _often(draw, marks_in_12, 12) else None,
        adapter_id=draw(st.sampled_from(("adapter", "a")))
        if _often(draw, marks_in_12, 12)
        else None,
        media=media,
    )


@st.composite
def events(
    draw: st.DrawFn,
    request_ids: list[str],
    gaps: Sequence[int] = GAPS,
    last_round: int = LAST_ROUND,
) -> tuple[AnyEvent, ...]:
    """Each request is submitted in one of the first rounds, several often in the same one; some
    are aborted in any phase, before or after they live, or twice; the cache is reset now and then,
    mostly in vain; some are forced to be preempted, soon after they came. Shrinks to all
    submissions in round 0 and nothing else."""
    made: list[AnyEvent] = []
    at = 0
    for request_id in request_ids:
        at += draw(st.sampled_from(gaps))
        made.append(_moment(draw, SubmitEvent, at, request_id=request_id))
    for request_id in [*request_ids, "unknown"]:
        if _often(draw, 1, 4):
            for _ in range(draw(st.integers(1, 2))):
                late = draw(st.integers(0, at + last_round))
                made.append(_moment(draw, AbortEvent, late, request_id=request_id))
    if _often(draw, 1, 4):
        late = draw(st.sampled_from((at + 3 * LAST_ROUND, at + LAST_ROUND, at)))
        made.append(_moment(draw, ResetEvent, late))
        if request_ids and _often(draw, 1, 2):
            # Something must come after a reset that succeeds, or nothing shows that it did.
            again = next(e for e in made if isinstance(e, SubmitEvent))
            made.remove(again)
            made.append(SubmitEvent(round=late + 1, request_id=again.request_id))
    if _often(draw, 1, 4):
        submitted = [(e.request_id, e.round) for e in made if isinstance(e, SubmitEvent)]
        for request_id, came in [*submitted, ("unknown", 0)]:
            if _often(draw, 1, 2):
                for _ in range(draw(st.integers(1, 2))):
                    late = came + draw(st.integers(1, LAST_ROUND // 2))
                    forced = _moment(draw, PreemptEvent, late, request_id=request_id)
                    made.append(forced)
                    if _often(draw, 1, 6):
                        now = forced.in_flight
                        made.append(AbortEvent(round=late, in_flight=now, request_id=request_id))
    return tuple(made)


def _moment(draw: st.DrawFn, kind: type[Any], at: int, **fields: str) -> Any:
    return kind(round=at, in_flight=_often(draw, 1, 4), **fields)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """A whole scenario of up to seven requests, now and then a crowd. Shrinks to one request."""
    if _often(draw, 1, 6):
        return draw(crowds())
    cache = draw(caches())
    limits = draw(schedulers(cache))
    wide = _often(draw, 1, 6)
    vocab_size = max(SPARSE_VOCABULARY) + 1 if wide else draw(st.sampled_from((2, 3, 5)))
    # Two requests that differ in nothing but their salts, adapters or media are rare unless whole
    # scenarios are of them.
    marks_in_12 = draw(st.sampled_from((1, 1, 6)))
    kinds = KINDS if marks_in_12 == 1 else ("same", "same", "longer", "prefix")
    count = draw(st.integers(1, MAX_REQUESTS))
    vocabulary = SPARSE_VOCABULARY if wide else range(vocab_size)
    texts = draw(prompts(cache, vocabulary, count, kinds))
    if _often(draw, 1, 12):
        texts[-1] = []
    # Likewise two beam searches that push one another about.
    beams_in_12 = 0 if wide else draw(st.sampled_from((2, 2, 2, 0, 10)))
    spot = draw(st.integers(0, 2 * cache.block_size))
    made = [
        draw(requests(f"r{i}", text, vocab_size, limits, beams_in_12, marks_in_12, spot))
        for i, text in enumerate(texts)
    ]
    return _scenario(draw, cache, limits, made, vocab_size)


@st.composite
def crowds(draw: st.DrawFn) -> Scenario:
    """Requests that come together, most of them with a common prefix of one to three blocks, on a
    pool and in steps that hold several: what one computes, those behind it could hit. Shrinks to
    three requests of a few zeros."""
    cache = msgspec.structs.replace(
        draw(caches()),
        block_size=draw(st.sampled_from((2, 1, 3))),
        num_blocks=draw(st.integers(8, 24)),
        enable_prefix_caching=True,
    )
    limits = draw(schedulers(cache))
    limits = msgspec.structs.replace(
        limits,
        max_num_seqs=draw(st.sampled_from((8, 4))),
        max_num_batched_tokens=max(12, limits.max_num_batched_tokens),
        wait_for_prefix=not _often(draw, 1, 4),
    )
    vocab_size = draw(st.sampled_from((2, 3, 5)))
    tokens = st.integers(0, vocab_size - 1)
    length = cache.block_size * draw(st.integers(1, 3))
    prefix = draw(st.lists(tokens, min_size=length, max_size=length))
    made = []
    for index in range(draw(st.integers(3, MAX_REQUESTS))):
        tail = draw(st.lists(tokens, min_size=1, max_size=cache.block_size + 1))
        text = tail if _often(draw, 2, 5) else [*prefix, *tail]
        made.append(draw(requests(f"r{index}", text, vocab_size, limits, beams_in_12=1)))
    return _scenario(draw, cache, limits, made, vocab_size, gaps=(0, 0, 0, 0, 1), last_round=2)


def _scenario(
    draw: st.DrawFn,
    cache: CacheConfig,
    limits: SchedulerConfig,
    made: list[Request],
    vocab_size: int,
    gaps: Sequence[int] = GAPS,
    last_round: int = LAST_ROUND,
) -> Scenario:
    return Scenario(
        cache=cache,
        scheduler=limits,
        requests=tuple(ScenarioRequest(request=request) for request in made),
        events=draw(events([request.request_id for request in made], gaps, last_round)),
        vocab_size=vocab_size,
        eos_token_ids=draw(st.sampled_from(((), (vocab_size - 1,), (vocab_size - 1, 0)))),
        failing_requests=tuple(one.request_id for one in made if _often(draw, 1, 16)),
    )
