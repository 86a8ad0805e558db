"""Special cases that have an answer on paper."""

import heapq
from collections.abc import Callable
from math import factorial

import numpy as np
import pytest

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.simulator.cluster.description import Policy, Pool
from pagetwin.simulator.cost_model import LinearCostModel
from pagetwin.simulator.one_replica import simulate_replica
from pagetwin.simulator.results.summary import summarise
from pagetwin.simulator.simulate import simulate
from pagetwin.simulator.statistics.intervals import replication_interval
from pagetwin.simulator.workloads.workload import plain_request


def erlang_c_wait(load: float, servers: int) -> float:
    """Mean wait in service times of M/M/c, for `load` = arrival rate times service time."""
    waiting = load**servers / factorial(servers) / (1 - load / servers)
    chance = waiting / (sum(load**k / factorial(k) for k in range(servers)) + waiting)
    return chance / (servers - load)


def mean_wait(arrivals: list[float], services: list[float], servers: int) -> float:
    """In a queue of that many servers, by the recursion of Kiefer and Wolfowitz."""
    free_at, waits = [0.0] * servers, []
    for arrival, service in zip(arrivals, services, strict=True):
        start = max(arrival, heapq.heappop(free_at))
        waits.append(start - arrival)
        heapq.heappush(free_at, start + service)
    return float(np.mean(waits))


@pytest.mark.parametrize(("servers", "load"), [(1, 0.6), (3, 2.1)])
def test_a_replica_of_c_places_waits_as_an_m_m_c_queue_does(servers: int, load: float) -> None:
    """Steps take the same whatever is in them, and outputs are geometric, so that a replica of c
    sequences is c servers with exponential service, up to the length of a step (1/200)."""
    mean_tokens, step_s, count = 200, 0.01, 3000
    service_s, waits = mean_tokens * step_s, []
    for seed in range(8):
        draw = np.random.Generator(np.random.Philox(seed))
        arrivals = np.cumsum(draw.exponential(service_s / load, count)).tolist()
        outputs = draw.geometric(1 / mean_tokens, count).tolist()
        result = simulate_replica(
            [plain_request(f"r{n:05}", (1,), outputs[n], arrivals[n]) for n in range(count)],
            cache=CacheConfig(num_blocks=12_000, block_size=4, enable_prefix_caching=False),
            scheduler=SchedulerConfig(max_model_len=10_000, max_num_seqs=servers),
            cost_model=LinearCostModel(constant_s=step_s),
            fast_forward=True,
        )
        queued = [one.queue_s for one in result.requests if one.queue_s is not None]
        assert len(queued) == count
        waits.append(float(np.mean(queued)) / service_s)
        on_paper = mean_wait(arrivals, [tokens * step_s for tokens in outputs], servers)
        assert waits[-1] * service_s == pytest.approx(on_paper, abs=2 * step_s)
    interval = replication_interval(waits, confidence=0.999)
    assert interval.low is not None
    assert interval.high is not None
    # Half a step's wait for the step that is under way comes on top.
    expected = erlang_c_wait(load, servers) + 0.5 / mean_tokens * load / servers
    assert interval.low < expected < interval.high


def test_random_splitting_makes_independent_queues(make_pool: Callable[..., Pool]) -> None:
    """Sessions of one request each, hashed to two replicas, are two M/D/1 queues."""
    rho, step_s = 0.7, 0.5
    spec = f"poisson:rate={2 * rho / step_s},input=4,output=1,requests=5000"
    pool = make_pool(num_replicas=2, max_num_seqs=1)
    result = simulate(spec, pool, Policy(router="session_sticky"))
    expected = step_s * rho / (2 * (1 - rho))
    assert result.served("queue_s").mean() == pytest.approx(expected, rel=0.1)
    balanced = simulate(spec, pool, Policy(router="least_outstanding"))
    assert balanced.served("queue_s").mean() < 0.6 * expected


def test_little_is_told_as_it_was_checked(make_pool: Callable[..., Pool]) -> None:
    summary = summarise(simulate("poisson:rate=3,input=4,output=5,requests=100", make_pool()))
    little = summary.little
    assert summary.e2e_s is not None
    assert little.mean_time_s == pytest.approx(summary.e2e_s.mean)
    assert little.mean_outstanding == pytest.approx(little.arrivals_per_s * little.mean_time_s)
