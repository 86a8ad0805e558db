"""Whole runs over the fingerprint executor: the schedule never changes what a request says."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.core import EngineCore
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

MAX_MODEL_LEN = 24


@st.composite
def _requests(draw: st.DrawFn) -> list[Request]:
    """One to seven requests over two tokens, often sharing prefixes. Shrinks to few and short."""
    families = draw(st.lists(st.lists(st.integers(1, 2), max_size=10), min_size=1, max_size=2))
    requests = []
    for index in range(draw(st.integers(1, 7))):
        tail = draw(st.lists(st.integers(1, 2), min_size=1, max_size=8))
        requests.append(
            Request(
                request_id=f"r{index}",
                prompt_token_ids=(*draw(st.sampled_from(families)), *tail),
                priority=draw(st.integers(0, 2)),
                cache_salt=draw(st.sampled_from([None, None, "s"])),
                eos_token_ids=draw(st.sampled_from([(), (0,)])),
                sampling_params=SamplingParams(
                    n=draw(st.sampled_from([1, 1, 2, 3])), max_tokens=draw(st.integers(1, 12))
                ),
            )
        )
    return requests


@st.composite
def _tight_configs(draw: st.DrawFn) -> EngineConfig:
    """Pools that just hold one request, and every switch. Shrinks to the plainest engine."""
    block_size = draw(st.sampled_from([4, 1, 2, 3]))
    least = -(-MAX_MODEL_LEN // block_size) + 1
    chunked = draw(st.booleans())
    return EngineConfig(
        cache=CacheConfig(
            block_size=block_size,
            num_blocks=least + draw(st.integers(0, 4)),
            num_host_blocks=draw(st.sampled_from([0, 3, 20])),
            enable_prefix_caching=draw(st.booleans()),
            enable_partial_hits=draw(st.booleans()),
            watermark_blocks=draw(st.integers(0, 2)),
        ),
        scheduler=SchedulerConfig(
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=draw(st.integers(3, 6)),
            max_num_batched_tokens=draw(st.integers(6, 30)) if chunked else MAX_MODEL_LEN,
            enable_chunked_prefill=chunked,
            long_prefill_token_threshold=draw(st.sampled_from([0, 3])) if chunked else 0,
            policy=draw(st.sampled_from(["fcfs", "priority"])),
            preemption_mode=draw(st.sampled_from(["recompute", "swap"])),
            num_lookahead_slots=0,
            async_scheduling=draw(st.booleans()),
        ),
        debug_invariants=True,
    )


ROOMY = EngineConfig(
    cache=CacheConfig(num_blocks=1000, block_size=4, enable_prefix_caching=False),
    scheduler=SchedulerConfig(max_model_len=MAX_MODEL_LEN),
)


@dataclass
class _Run:
    """Tokens of each sequence, how it ended, and what happened on the way."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    finished: dict[str, tuple[str, object]] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)


def _run(config: EngineConfig, requests: list[Request]) -> _Run:
    core = EngineCore(config, FingerprintExecutor(config.cache, vocab_size=4))
    run = _Run()
    for request in requests:
        core.add_request(request)
    while core.has_unfinished_requests():
        completed = core.step()
        assert completed is not None, "work is left, but no step was planned (P2.6)"
        plan = completed.plan
        assert plan.num_scheduled_tokens <= config.scheduler.max_num_batched_tokens
        assert core.scheduler.counters().num_running <= config.scheduler.max_num_seqs
        for seq_id, token in completed.result.sampled.items():
            if seq_id not in run.finished:
                run.tokens.setdefault(seq_id, []).append(token)
        for end in completed.update.finished:
            run.finished[end.seq_id] = (end.reason, end.stop_reason)
        assert plan.step < 5000, "the run does not end"
    counters = core.scheduler.counters()
    assert counters.num_free_blocks == config.cache.num_blocks - 1
    assert counters.num_free_host_blocks == config.cache.num_host_blocks
    for name in ("partial_hits", "evictions", "cow_copies", "prefix_hit_tokens"):
        run.happened[name] += getattr(counters, name)
    run.happened["recompute"] += counters.preemptions_recompute
    run.happened["swap"] += counters.preemptions_swap
    return run


@pytest.fixture(scope="module")
def pressures() -> Iterator[Counter[str]]:
    """Adds up what all examples did, and fails if one of the subjects never came up."""
    total: Counter[str] = Counter()
    yield total
    subjects = ("partial_hits", "evictions", "cow_copies", "prefix_hit_tokens", "recompute", "swap")
    assert not [name for name in subjects if not total[name]], total


@pytest.fixture(scope="module")
def aborts() -> Iterator[Counter[bool]]:
    """Counts aborts by whether the request was alive, and fails if either never came up."""
    total: Counter[bool] = Counter()
    yield total
    assert total[True] > total[False] > 0, total


@given(requests=_requests(), config=_tight_configs())
@settings(max_examples=300)
def test_tokens_and_ends_do_not_depend_on_pool_batch_or_schedule(
    pressures: Counter[str], requests: list[Request], config: EngineConfig
) -> None:
    expected, got = _run(ROOMY, requests), _run(config, requests)
    pressures.update(got.happened)
    assert got.tokens == expected.tokens
    assert got.finished == expected.finished


@given(requests=_requests(), config=_tight_configs(), data=st.data())
@settings(max_examples=150)
def test_an_abort_at_any_step_leaves_the_others_as_they_were(
    aborts: Counter[bool], requests: list[Request], config: EngineConfig, data: st.DataObject
) -> None:
    expected = _run(ROOMY, requests)
    victim = data.draw(st.sampled_from(requests)).request_id
    when = data.draw(st.integers(0, 15))
    core = EngineCore(config, FingerprintExecutor(config.cache, vocab_size=4))
    for request in requests:
        core.add_request(request)
    tokens: dict[str, list[int]] = {}
    ended: set[str] = set()
    steps = 0
    while core.has_unfinished_requests():
        if steps == when:
            aborts[core.abort_request(victim)] += 1
            core.scheduler.check_invariants()
        completed = core.step()
        steps += 1
        if completed is None:
            continue
        for seq_id, token in completed.result.sampled.items():
            if seq_id not in ended:
                tokens.setdefault(seq_id, []).append(token)
        ended |= {end.seq_id for end in completed.update.finished}
    for seq_id, expected_tokens in expected.tokens.items():
        if not seq_id.startswith(f"{victim}/"):
            assert tokens[seq_id] == expected_tokens
    assert core.scheduler.counters().num_free_blocks == config.cache.num_blocks - 1
