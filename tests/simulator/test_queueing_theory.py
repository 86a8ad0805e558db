"""A replica whose steps all take the same is a queue with known waits: they are met.

`max_num_seqs` servers, one step of time d for each output token, nothing else costs anything. The
interval is that of the mean over independent runs; seeds are fixed.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.simulator.cost_model import LinearCostModel
from pagetwin.simulator.one_replica import simulate_replica
from pagetwin.simulator.timings import RequestTimings

STEP_S = 0.01
NUM_RUNS = 12
NUM_REQUESTS, NUM_WARM_UP = 2500, 500
CONFIDENCE = 0.999

Lengths = Callable[[np.random.Generator, int], list[int]]


def constant(_: np.random.Generator, count: int) -> list[int]:
    return [20] * count


MEAN_TOKENS = 60


def geometric(rng: np.random.Generator, count: int) -> list[int]:
    """Close to exponential service, and memoryless as that is."""
    return [int(tokens) for tokens in rng.geometric(1 / MEAN_TOKENS, count)]


def wait_s(timings: RequestTimings) -> float:
    wait = timings.queue_s
    assert wait is not None
    return wait


def mean_waits(lengths: Lengths, *, servers: int, load: float, mean_tokens: float) -> list[float]:
    """Mean seconds from arrival to service, of each run."""
    means = []
    for seed in range(NUM_RUNS):
        rng = np.random.Generator(np.random.PCG64([seed, servers]))
        gap_s = mean_tokens * STEP_S / (load * servers)
        arrivals = np.cumsum(rng.exponential(gap_s, NUM_REQUESTS))
        tokens = lengths(rng, NUM_REQUESTS)
        kinds = {n: SamplingParams(max_tokens=n, ignore_eos=True) for n in set(tokens)}
        requests = [
            Request(
                request_id=f"r{i:05}",
                prompt_token_ids=(1, 2, 3),
                sampling_params=kinds[tokens[i]],
                arrival_s=float(arrivals[i]),
            )
            for i in range(NUM_REQUESTS)
        ]
        result = simulate_replica(
            requests,
            cache=CacheConfig(
                num_blocks=4000, enable_prefix_caching=False, enable_partial_hits=False
            ),
            scheduler=SchedulerConfig(max_model_len=4000, max_num_seqs=servers),
            cost_model=LinearCostModel(constant_s=STEP_S),
            fast_forward=True,
        )
        assert result.outstanding_ticks == result.sojourn_ticks  # Little's law
        means.append(float(np.mean([wait_s(one) for one in result.requests[NUM_WARM_UP:]])))
    return means


def half_interval(means: list[float]) -> float:
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(means) - 1))
    return quantile * float(np.std(means, ddof=1)) / math.sqrt(len(means))


def pollaczek_wait(load: float, mean_s: float, second_moment_s2: float) -> float:
    """Pollaczek and Khinchine's mean wait of one server."""
    return load / mean_s * second_moment_s2 / (2 * (1 - load))


def erlang_wait(servers: int, load: float, mean_s: float) -> float:
    """Mean wait of M/M/c, by Erlang's C formula."""
    offered = servers * load
    below = sum(offered**k / math.factorial(k) for k in range(servers))
    full = offered**servers / math.factorial(servers) / (1 - load)
    return full / (below + full) * mean_s / (servers * (1 - load))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.85])
def test_equal_lengths_on_one_server_wait_as_in_m_d_1(load: float) -> None:
    means = mean_waits(constant, servers=1, load=load, mean_tokens=20)
    service_s = 20 * STEP_S
    expected = pollaczek_wait(load, service_s, service_s**2)
    half = half_interval(means)
    assert half < 0.35 * expected
    assert abs(np.mean(means) - expected) < half


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_memoryless_lengths_on_one_server_wait_as_in_m_m_1(load: float) -> None:
    means = mean_waits(geometric, servers=1, load=load, mean_tokens=MEAN_TOKENS)
    mean_s = MEAN_TOKENS * STEP_S
    # The second moment of a geometric number of steps; M/M/1 has 2 / mu ** 2.
    second = (2 * MEAN_TOKENS**2 - MEAN_TOKENS) * STEP_S**2
    expected = pollaczek_wait(load, mean_s, second)
    assert expected == pytest.approx(load * mean_s / (1 - load), rel=0.01)
    half = half_interval(means)
    assert half < 0.35 * expected
    assert abs(np.mean(means) - expected) < half


@pytest.mark.parametrize(("servers", "load"), [(2, 0.7), (4, 0.85)])
def test_memoryless_lengths_on_many_servers_wait_as_in_m_m_c(servers: int, load: float) -> None:
    """But that who finds others served waits for the end of their step, at most d."""
    means = mean_waits(geometric, servers=servers, load=load, mean_tokens=MEAN_TOKENS)
    expected = erlang_wait(servers, load, MEAN_TOKENS * STEP_S)
    half = half_interval(means)
    assert half < 0.45 * expected
    assert expected - half < np.mean(means) < expected + STEP_S + half
