"""Intervals cover what they say; a queue that grows is told from one that settles."""

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from pagetwin.simulator.statistics.deciding import judge
from pagetwin.simulator.statistics.intervals import (
    Floats,
    batch_interval,
    replication_interval,
    t_quantile,
)
from pagetwin.simulator.statistics.saturation import backlog, saturates


def queue(rate: float, num_requests: int, seed: int) -> tuple[Floats, Floats]:
    """Arrivals and finishes of an M/M/1 queue that serves one request a second (Lindley)."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, num_requests))
    finishes, free_at = np.empty(num_requests), 0.0
    for place, service in enumerate(rng.exponential(1.0, num_requests)):
        free_at = max(free_at, arrivals[place]) + service
        finishes[place] = free_at
    return arrivals, finishes


def test_t_quantiles_are_students() -> None:
    assert t_quantile(0.95, 9) == pytest.approx(stats.t.ppf(0.975, 9))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_replication_intervals_cover_as_often_as_they_say(confidence: float) -> None:
    rng = np.random.default_rng(1)
    runs = rng.normal(5.0, 2.0, (2000, 6)).tolist()
    covered = 0
    for values in runs:
        interval = replication_interval(values, confidence)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 5.0 <= interval.high
    low, high = stats.binom.interval(1 - 1e-6, 2000, confidence)
    assert low <= covered <= high


def test_one_run_has_no_interval() -> None:
    interval = replication_interval([3.0])
    assert (interval.value, interval.low, interval.high) == (3.0, None, None)
    assert interval.is_below(10.0) is None


def test_batches_of_one_run_cover_its_percentile() -> None:
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).exponential(1.0, 4000)
        interval = batch_interval(values, lambda batch: float(np.quantile(batch, 0.95)))
        assert interval.num_samples == 20
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= -np.log(0.05) <= interval.high
    assert covered >= 175
    assert batch_interval([1.0] * 50, np.mean).low is None


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.8])
def test_a_queue_below_capacity_settles(rate: float) -> None:
    judged = [backlog(*queue(rate, 4000, seed)).settling for seed in range(20)]
    assert judged.count("grows") == 0


def test_a_queue_just_below_capacity_is_rarely_said_to_grow() -> None:
    """In a short run, too, in which the number in the system goes up by chance."""
    judged = [
        backlog(*queue(0.95, count, seed)) for count in (100, 300, 1000) for seed in range(60)
    ]
    assert sum(one.growth > 0.1 for one in judged) > 10, "none went up by chance"
    assert sum(one.settling == "grows" for one in judged) <= 4


def test_a_flood_that_ends_before_its_first_requests_do_grows() -> None:
    """A run too short for its requests: but the last wait for longer than requests arrived."""
    arrivals = np.linspace(0, 20, 2000)
    starts = arrivals * 9
    finishes = starts + 18
    assert backlog(arrivals, finishes).settling == "unclear"
    found = backlog(arrivals, finishes, starts)
    assert found.settling == "grows"
    assert found.growth == pytest.approx(8 / 9, abs=0.01)
    assert backlog(arrivals, arrivals + 18, arrivals).settling == "unclear"
    never = np.full(2000, np.nan)
    assert backlog(arrivals, never, never).settling == "grows"
    assert backlog(arrivals, arrivals, never).settling == "settles", "all were turned away"


def test_growth_over_spans_shorter_than_a_request_stays_is_unclear() -> None:
    """Everybody stays for a tenth of the run, a little longer the more there are."""
    arrivals = np.linspace(0, 100, 3000)
    finishes = arrivals + 10 + 0.1 * arrivals
    assert backlog(arrivals, finishes).settling == "unclear"
    assert backlog(arrivals, arrivals + 1 + 0.1 * arrivals).settling == "grows"


@pytest.mark.parametrize("rate", [1.25, 1.5, 4.0])
def test_a_queue_above_capacity_grows(rate: float) -> None:
    for seed in range(20):
        found = backlog(*queue(rate, 4000, seed))
        assert found.settling == "grows"
        assert found.growth == pytest.approx(1 - 1 / rate, abs=0.1)


def test_several_runs_tell_a_queue_just_below_from_one_above_capacity() -> None:
    """Alone, a run of so few requests can look either way."""
    told = {0.9: 0, 1.2: 0}
    for rate in told:
        for first in range(0, 100, 5):
            runs = [backlog(*queue(rate, 1000, first + seed)) for seed in range(5)]
            told[rate] += saturates(runs, 0.95)
    assert told[0.9] <= 4
    assert told[1.2] >= 16
    flood = backlog(*queue(3.0, 500, 0))
    assert saturates([flood], 0.95)


def test_what_never_finished_counts_as_backlog() -> None:
    arrivals = np.arange(200.0)
    finishes = np.where(arrivals % 2 == 0, arrivals + 1, np.inf)
    found = backlog(arrivals, finishes)
    assert found.settling == "grows"
    assert found.growth == pytest.approx(0.5, abs=0.05)


def test_filling_up_is_no_growth() -> None:
    """Nobody waits, and everyone stays for a quarter of the run."""
    arrivals = np.linspace(0, 40, 2000)
    assert backlog(arrivals, arrivals + 10).settling == "settles"
    assert backlog(arrivals, arrivals + 15).settling == "unclear"


@pytest.mark.parametrize("arrivals", [np.arange(20.0), np.zeros(500)])
def test_too_few_or_all_at_once_is_unclear(arrivals: Floats) -> None:
    assert backlog(arrivals, arrivals + 1).settling == "unclear"


def test_looking_after_every_seed_rarely_errs() -> None:
    """A quantity exactly at its limit: a side is named no more often than the error allows."""
    rng = np.random.default_rng(3)
    named = 0
    for _ in range(400):
        values: list[float] = []
        for _ in range(10):
            values.append(float(rng.normal(1.0, 0.3)))
            verdict = judge({"a": values}, {"a": 1.0}, confidence=0.95, max_looks=10)
            if verdict.answer != "open":
                named += 1
                break
    assert named <= stats.binom.ppf(1 - 1e-6, 400, 0.05)


def test_clear_cases_are_decided_early() -> None:
    limits = {"a": 1.0, "b": 1.0}
    values = {"a": [0.5, 0.51, 0.49], "b": [0.2, 0.21, 0.2]}
    assert judge(values, limits, confidence=0.95, max_looks=8).answer == "yes"
    worse = values | {"b": [2.0, 2.1, 2.05]}
    verdict = judge(worse, limits, confidence=0.95, max_looks=8)
    assert (verdict.answer, verdict.failing) == ("no", ("b",))
    two = {name: pair[:2] for name, pair in worse.items()}
    assert judge(two, limits, confidence=0.95, max_looks=8).answer == "open"
