"""Cost of a random scenario: drawn, played on the engine without a model, judged, and counted."""

from itertools import islice

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.experiments.scenarios import RandomScenarios, play_and_judge
from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.strategies import scenarios
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.conformance.suite.stream import stream

NUM_SCENARIOS = 100


@pytest.fixture(scope="module")
def drawn() -> list[Scenario]:
    return list(islice(stream(scenarios(), 0), NUM_SCENARIOS))


def test_a_hundred_scenarios_are_drawn(benchmark: BenchmarkFixture) -> None:
    assert (
        len(benchmark(lambda: list(islice(stream(scenarios(), 0), NUM_SCENARIOS)))) == NUM_SCENARIOS
    )


def test_a_hundred_scenarios_are_played_and_judged(
    benchmark: BenchmarkFixture, drawn: list[Scenario]
) -> None:
    adapter = make_adapter("fingerprint:")
    played = benchmark(lambda: [play_and_judge(scenario, adapter) for scenario in drawn])
    assert not any(one.violations for one in played)


def test_a_hundred_scenarios_of_the_experiment(benchmark: BenchmarkFixture) -> None:
    """With every checker and the twin; at least 1,000 a minute by the clock is the goal."""
    adapter = make_adapter("fingerprint:")
    budget = Budget(3600, max_examples=NUM_SCENARIOS)
    pieces = benchmark(lambda: list(RandomScenarios().run(adapter, budget, 0)))
    assert not any(piece.violation for piece in pieces)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["scenarios_per_minute"] = round(60 * NUM_SCENARIOS / seconds)
