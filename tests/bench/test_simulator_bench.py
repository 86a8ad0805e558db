"""Speed of the simulator: chat requests on one replica, jumping and stepping, and by features."""

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pagetwin.conformance.bench.simulation import CACHE, SCHEDULER, chat_requests, simulate_here
from pagetwin.engine.config import CacheConfig
from pagetwin.simulator.cost_model import REFERENCE_COSTS
from pagetwin.simulator.one_replica import simulate_replica


def test_2000_chat_requests_counted(benchmark: BenchmarkFixture) -> None:
    """Divide 2,000 by the seconds: requests per CPU-second of fast forward."""
    run = benchmark.pedantic(simulate_here, args=("fast_forward", 2000), rounds=5)
    assert run.num_requests == 2000


def test_500_chat_requests_stepped(benchmark: BenchmarkFixture) -> None:
    """Divide 500 by the seconds: requests per CPU-second of stepping."""
    run = benchmark.pedantic(simulate_here, args=("stepping", 500), rounds=3)
    assert run.num_requests == 500


@pytest.mark.parametrize(
    ("name", "cache"), [("shared prompt", CACHE), ("short of blocks", CacheConfig(num_blocks=300))]
)
def test_500_chat_requests_jumped_where_they_cannot_be_counted(
    benchmark: BenchmarkFixture, name: str, cache: CacheConfig
) -> None:
    requests = list(chat_requests(500))
    if name == "shared prompt":
        requests = [msgspec.structs.replace(request, cache_salt=None) for request in requests]

    def run() -> int:
        result = simulate_replica(
            requests,
            cache=cache,
            scheduler=SCHEDULER,
            cost_model=REFERENCE_COSTS,
            fast_forward=True,
        )
        return result.counters.preemptions_recompute + result.counters.prefix_hit_tokens

    assert benchmark.pedantic(run, rounds=3) > 0
