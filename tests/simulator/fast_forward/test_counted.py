"""Counting gives exactly what stepping gives, and hands over where it cannot go on."""

from collections import Counter

import pytest

from pagetwin.conformance.timed_cases import TimedCase, make_plain_case
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.simulator.cost_model import REFERENCE_COSTS
from pagetwin.simulator.fast_forward.countable import can_count
from pagetwin.simulator.fast_forward.run import CountedRun
from pagetwin.simulator.occasions import occasions
from pagetwin.simulator.one_replica import simulate_replica
from pagetwin.simulator.timings import RequestTimings, SimulationResult

NUM_SEEDS = 250


def step_through(case: TimedCase) -> SimulationResult:
    return simulate_replica(
        case.requests,
        cache=case.cache,
        scheduler=case.scheduler,
        cost_model=case.cost_model,
        tokens=case.tokens(),
        aborts=case.aborts,
    )


def count_through(case: TimedCase) -> tuple[SimulationResult, CountedRun]:
    run = CountedRun(case.cache, case.scheduler, case.cost_model, case.tokens())
    return run.run(occasions(case.requests, case.aborts)), run


@pytest.mark.filterwarnings("ignore")
def test_random_runs_give_the_same_timings_counters_and_end() -> None:
    seen: Counter[str] = Counter()
    for seed in range(NUM_SEEDS):
        case = make_plain_case(seed)
        assert can_count(case.cache, case.scheduler)
        stepped = step_through(case)
        result, run = count_through(case)
        assert result == stepped, f"seed {seed}"
        seen["steps"] += stepped.num_steps
        seen["counted steps"] += run.counted.num_steps
        counters = stepped.counters
        if not run.was_handed_over:
            seen["never handed over"] += 1
            seen["evictions"] += counters.evictions > 0
            seen["refusals"] += bool(stepped.refused)
            seen["stops"] += any("stop" in one.finish_reasons for one in stepped.requests)
        elif run.counted.num_steps > 5:
            seen["handed over"] += 1
            seen["with late ones"] += bool(run.counted.late)
            seen["preemptions"] += counters.preemptions_recompute + counters.preemptions_swap > 0
            seen["hits"] += counters.prefix_hit_tokens > 0
            seen["aborts"] += counters.aborts > 0
    assert seen["counted steps"] > 0.6 * seen["steps"]
    rare = [name for name in GOALS if seen[name] < 3]
    assert not rare, f"too few runs saw {rare}: {seen}"


GOALS = (
    "never handed over",
    "evictions",
    "refusals",
    "stops",
    "handed over",
    "with late ones",
    "preemptions",
    "hits",
    "aborts",
)


def chat(number: int, arrival_s: float, *, max_tokens: int = 128) -> Request:
    return Request(
        request_id=f"r{number:05}",
        prompt_token_ids=tuple(range(512)),
        sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        arrival_s=arrival_s,
        cache_salt=str(number),
    )


@pytest.mark.parametrize("num_blocks", [20000, 500])
def test_a_served_model_is_counted_to_the_end_unless_blocks_are_short(num_blocks: int) -> None:
    case = TimedCase(
        cache=CacheConfig(num_blocks=num_blocks),
        scheduler=SchedulerConfig(max_model_len=4096),
        cost_model=REFERENCE_COSTS,
        requests=[chat(number, number * 0.04) for number in range(60)],
    )
    stepped = step_through(case)
    result, run = count_through(case)
    assert result == stepped
    assert run.was_handed_over == (num_blocks == 500)
    assert (stepped.counters.preemptions_recompute > 0) == (num_blocks == 500)
    assert run.counted.num_steps > 50


def test_the_same_prompt_again_ends_counting_because_it_hits() -> None:
    requests = [chat(0, 0.0), chat(1, 0.5), chat(0, 9.0)]
    requests[2] = Request(
        request_id="again",
        prompt_token_ids=requests[0].prompt_token_ids,
        arrival_s=9.0,
        cache_salt=requests[0].cache_salt,
    )
    case = TimedCase(
        cache=CacheConfig(num_blocks=2000),
        scheduler=SchedulerConfig(max_model_len=4096),
        cost_model=REFERENCE_COSTS,
        requests=requests,
    )
    result, run = count_through(case)
    assert result == step_through(case)
    assert run.was_handed_over
    assert result.counters.prefix_hit_tokens == 31 * 16 + 15  # the prompt but its last token


def test_timings_stream_out_of_a_counted_run_in_the_order_of_their_ends() -> None:
    ended: list[RequestTimings] = []
    result = simulate_replica(
        [chat(0, 0.0, max_tokens=50), chat(1, 0.1, max_tokens=2)],
        cache=CacheConfig(num_blocks=200),
        scheduler=SchedulerConfig(max_model_len=4096),
        cost_model=REFERENCE_COSTS,
        on_finish=ended.append,
        fast_forward=True,
    )
    assert [timings.request_id for timings in ended] == ["r00001", "r00000"]
    assert result.requests == ()
    assert result.outstanding_ticks == sum(
        timings.finish_ticks - timings.arrival_ticks
        for timings in ended
        if timings.finish_ticks is not None
    )
