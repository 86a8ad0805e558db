"""Speed of workloads and clusters; divide the requests by the seconds."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.simulator.cluster.description import Policy, Pool, RouterName
from pagetwin.simulator.cost_model import REFERENCE_COSTS
from pagetwin.simulator.simulate import simulate
from pagetwin.simulator.workloads.spec import parse_workload


@pytest.mark.parametrize(
    "spec",
    [
        "poisson:rate=8,input=512,output=128,requests=20000",
        "gamma:rate=8,cv=3,input=lognormal:1000:1.2:8000,output=uniform:1:500,requests=20000",
        "poisson:rate=8,input=512,output=128,system=1024,families=50,requests=20000",
    ],
)
def test_20000_requests_are_drawn(benchmark: BenchmarkFixture, spec: str) -> None:
    workload = parse_workload(spec)
    count = benchmark.pedantic(lambda: sum(1 for _ in workload.begin(0).arrivals()), rounds=3)
    assert count == 20000


@pytest.mark.parametrize("router", ["round_robin", "least_kv", "prefix_affinity"])
def test_400_requests_on_four_replicas(benchmark: BenchmarkFixture, router: RouterName) -> None:
    pool = Pool(
        cache=CacheConfig(num_blocks=8000),
        scheduler=SchedulerConfig(max_model_len=4096),
        num_replicas=4,
        cost_model=REFERENCE_COSTS,
    )
    spec = "poisson:rate=32,input=512,output=128,requests=400"
    result = benchmark.pedantic(simulate, args=(spec, pool, Policy(router=router)), rounds=2)
    assert result.conservation.num_finished == 400
