"""Cost of judging: checkers, replay, whole scenarios, exploration, shrinking, faults."""

import itertools

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.exploration.explorer import explore
from pagetwin.conformance.exploration.scopes import scopes
from pagetwin.conformance.faults.campaign import Campaign, run_campaign
from pagetwin.conformance.lockstep import replay_history
from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.shrink import shrink
from pagetwin.conformance.strategies import scenarios
from pagetwin.conformance.suite.stream import stream
from pagetwin.conformance.twins import judge_scenario
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.core import EngineCore
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.trace import HistoryWriter, Record
from pagetwin.simulator.replica import Replica

CACHE = CacheConfig(num_blocks=200, block_size=16)
SCHEDULER = SchedulerConfig(max_model_len=512, max_num_seqs=32, max_num_batched_tokens=256)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """64 requests that share a prefix of 64 tokens, in a pool that is too small for 32 of them."""
    config = EngineConfig(cache=CACHE, scheduler=SCHEDULER)
    history = HistoryWriter(keep=True, with_block_tables=True)
    core = EngineCore(config, FingerprintExecutor(CACHE, vocab_size=1000), history=history)
    for i in range(64):
        core.add_request(
            Request(
                request_id=f"{i:03}",
                prompt_token_ids=(*range(64), *(i + k for k in range(i))),
                sampling_params=SamplingParams(max_tokens=64),
            )
        )
    while core.has_unfinished_requests():
        core.step()
    return history.records


def test_checking_a_history(benchmark: BenchmarkFixture, records: list[Record]) -> None:
    assert benchmark(check_all, records) == []


def test_replaying_a_history_on_the_twin(
    benchmark: BenchmarkFixture, records: list[Record]
) -> None:
    report = benchmark(lambda: replay_history(records, Replica(CACHE, SCHEDULER)))
    assert report.equal, report.explain()
    assert report.decisions_compared > 4000


@pytest.fixture(scope="module")
def some_scenarios() -> list[Scenario]:
    """The first fifty of the random stream that verification draws from."""
    return list(itertools.islice(stream(scenarios(), 0), 50))


def test_judging_fifty_random_scenarios(
    benchmark: BenchmarkFixture, some_scenarios: list[Scenario]
) -> None:
    """Engine, twin, replay and all checkers; 1,000 a minute is 3 s a round."""
    verdicts = benchmark(lambda: [judge_scenario(one) for one in some_scenarios])
    assert all(verdict.holds for verdict in verdicts)


def test_drawing_fifty_random_scenarios(benchmark: BenchmarkFixture) -> None:
    drawn = benchmark(lambda: list(itertools.islice(stream(scenarios(), 0), 50)))
    assert len(drawn) == 50


def test_exploring_a_quick_scope(benchmark: BenchmarkFixture) -> None:
    """A few hundred states; the rate is transitions over the time."""
    scope = next(one for one in scopes("quick") if one.name == "quick-window")
    result = benchmark(lambda: explore(scope))
    assert result.complete
    benchmark.extra_info["transitions"] = result.num_transitions


def test_shrinking_a_scenario_to_its_longest_prompt(
    benchmark: BenchmarkFixture, some_scenarios: list[Scenario]
) -> None:
    """The shrinker's own cost: the predicate takes no time."""

    def fails(one: Scenario) -> bool:
        return any(r.num_prompt_tokens >= 4 for r in one.requests_by_id().values())

    largest = max(filter(fails, some_scenarios), key=lambda one: len(one.requests))
    shrunk = benchmark(lambda: shrink(largest, fails))
    assert shrunk.is_minimal


def test_one_kind_of_fault_at_every_place(benchmark: BenchmarkFixture) -> None:
    campaign = Campaign(make_adapter("fingerprint:"))
    report = benchmark(lambda: run_campaign(campaign, "recompute", "fault.execution"))
    assert not report.broken
    benchmark.extra_info["runs"] = report.runs
