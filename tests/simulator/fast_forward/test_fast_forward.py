"""Jumping gives exactly what stepping gives: timings, counters, and every record when asked."""

import random
from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise

import pytest
import simpy
from msgspec import structs

from pagetwin.conformance.timed_cases import STEP_S, TimedCase, make_case
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.trace import HeaderRecord, HistoryWriter
from pagetwin.simulator.cost_model import LinearCostModel
from pagetwin.simulator.fast_forward.process import FastForwardProcess
from pagetwin.simulator.occasions import At, feed, occasions
from pagetwin.simulator.one_replica import simulate_replica
from pagetwin.simulator.process import ReplicaProcess
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.replica_interface import ReplicaLoad
from pagetwin.simulator.timings import SimulationResult

NUM_SEEDS = 200


def step_through(case: TimedCase, history: HistoryWriter | None = None) -> SimulationResult:
    return simulate_replica(
        case.requests,
        cache=case.cache,
        scheduler=case.scheduler,
        cost_model=case.cost_model,
        tokens=case.tokens(),
        aborts=case.aborts,
        history=history,
    )


def jump_through(
    case: TimedCase, history: HistoryWriter | None = None
) -> tuple[SimulationResult, FastForwardProcess]:
    env = simpy.Environment()
    replica = Replica(case.cache, case.scheduler)
    process = FastForwardProcess(env, replica, case.cost_model, case.tokens(), history)
    env.process(feed(env, process, occasions(case.requests, case.aborts)))
    env.run()
    replica.check_invariants()
    return process.times.result(replica.counters()), process


def features(case: TimedCase, result: SimulationResult) -> list[str]:
    """What a run that jumped has seen."""
    counters = result.counters
    seen = {
        "preemption": counters.preemptions_recompute > 0,
        "swap": counters.preemptions_swap > 0,
        "hits": counters.prefix_hit_tokens > 0,
        "partial hits": counters.partial_hits > 0,
        "evictions": counters.evictions > 0,
        "copies": counters.cow_copies > 0,
        "aborts": counters.aborts > 0,
        "stops": any("stop" in t.finish_reasons for t in result.requests),
        "samples": any(r.sampling_params.n > 1 for r in case.requests),
        "beams": any(r.beam_search for r in case.requests),
        "chunks": any(
            r.num_prompt_tokens > case.scheduler.max_num_batched_tokens for r in case.requests
        ),
        "asynchronous": case.scheduler.async_scheduling,
        "priority": case.scheduler.policy == "priority",
        "window": case.cache.sliding_window > 0,
        "lookahead": case.scheduler.num_lookahead_slots > 0,
        "passing over": case.scheduler.wait_for_prefix and result != step_through(impatient(case)),
    }
    return [name for name, is_there in seen.items() if is_there]


def impatient(case: TimedCase) -> TimedCase:
    """The same where nobody is passed over."""
    return replace(case, scheduler=structs.replace(case.scheduler, wait_for_prefix=False))


def test_random_runs_give_the_same_records_and_timings() -> None:
    jumped: Counter[str] = Counter()
    for seed in range(NUM_SEEDS):
        case = make_case(seed)
        stepped_history = HistoryWriter(with_block_tables=True)
        history = HistoryWriter(with_block_tables=True)
        history.write(
            HeaderRecord(cache=case.cache, scheduler=case.scheduler, engine="pagetwin.simulator")
        )
        stepped = step_through(case, stepped_history)
        result, process = jump_through(case, history)
        for record, expected in zip(history.records, stepped_history.records, strict=False):
            assert record == expected, f"seed {seed}"
        assert len(history.records) == len(stepped_history.records), f"seed {seed}"
        assert result == stepped, f"seed {seed}"
        alone, quiet = jump_through(case)
        assert alone == stepped, f"seed {seed}, without a history"
        assert quiet.num_steps_jumped == process.num_steps_jumped
        if process.num_steps_jumped > 0:
            jumped.update(features(case, stepped))
            jumped["runs"] += 1
        jumped["steps"] += stepped.num_steps
        jumped["steps jumped"] += process.num_steps_jumped
    assert jumped["steps jumped"] > 0.4 * jumped["steps"]
    assert jumped["runs"] > 0.8 * NUM_SEEDS
    rare = [name for name in ALL_FEATURES if jumped[name] < 5]
    assert not rare, f"too few runs that jumped saw {rare}: {jumped}"


ALL_FEATURES = (
    "preemption",
    "swap",
    "hits",
    "partial hits",
    "evictions",
    "copies",
    "aborts",
    "stops",
    "samples",
    "beams",
    "chunks",
    "asynchronous",
    "priority",
    "window",
    "lookahead",
    "passing over",
)


def probed(case: TimedCase, kind: type[ReplicaProcess], ticks: list[int]) -> list[ReplicaLoad]:
    """The loads that a router sees at those ticks."""
    env = simpy.Environment()
    replica = Replica(case.cache, case.scheduler)
    process = kind(env, replica, case.cost_model, case.tokens())
    loads: list[ReplicaLoad] = []

    def look() -> Generator[simpy.Event, None, None]:
        for tick in ticks:
            yield At(env, tick)
            loads.append(process.load())

    env.process(feed(env, process, occasions(case.requests, case.aborts)))
    env.process(look())
    env.run()
    if isinstance(process, FastForwardProcess):
        SEEN["steps jumped"] += process.num_steps_jumped
    return loads


SEEN: Counter[str] = Counter()


def test_a_router_sees_the_same_loads_at_any_time() -> None:
    SEEN.clear()
    for seed in range(60):
        case = make_case(seed)
        rng = random.Random(seed)
        end = max(1, step_through(case).end_ticks) + 1
        ticks = sorted(rng.randrange(1, end) for _ in range(40))
        stepped = probed(case, ReplicaProcess, ticks)
        assert probed(case, FastForwardProcess, ticks) == stepped, f"seed {seed}"
        SEEN["changes"] += sum(a != b for a, b in pairwise(stepped))
    assert SEEN["steps jumped"] > 3000
    assert SEEN["changes"] > 500


def test_a_running_sequence_that_fills_a_block_lets_in_who_would_hit_it() -> None:
    """The first that waits lacks blocks until a running sequence completes one that it shares,
    with its next block reserved before (lookahead): then it is admitted, in mid-stretch."""
    requests = [
        Request(request_id=name, prompt_token_ids=prompt, arrival_s=arrival_s, sampling_params=long)
        for name, prompt, arrival_s in (
            ("filling", (1,), 0.0),
            ("holding", tuple(range(20, 33)), 0.0),
            ("waiting", (1, 9, 9, 9, 5, 5, 5, 5, 5), 1.5 * STEP_S),
        )
        for long in [SamplingParams(max_tokens=40, ignore_eos=True)]
    ]
    case = TimedCase(
        cache=CacheConfig(num_blocks=10, block_size=4, enable_partial_hits=False),
        scheduler=SchedulerConfig(max_model_len=64, max_num_seqs=4, num_lookahead_slots=3),
        cost_model=LinearCostModel(constant_s=STEP_S),
        requests=requests,
        script=lambda *_: 9,
    )
    stepped = step_through(case)
    result, process = jump_through(case)
    assert result == stepped
    assert process.num_steps_jumped > 0
    assert stepped.requests[2].first_scheduled_s == pytest.approx(4 * STEP_S)
    assert stepped.counters.prefix_hit_tokens >= 4
