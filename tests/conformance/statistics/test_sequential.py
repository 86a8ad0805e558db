"""The sequential wrapper errs as rarely as promised, and finds what it should."""

from collections.abc import Callable

import numpy as np
import pytest

from pagetwin.conformance.statistics.goodness_of_fit import g_test
from pagetwin.conformance.statistics.rates import is_at_least, is_at_most
from pagetwin.conformance.statistics.sequential import SequentialResult, sequential_test

RANDOM = np.random.default_rng(5)
LOGITS = np.random.default_rng(0).normal(size=1000) * 2.0


def softmax(temperature: float) -> np.ndarray:
    weights = np.exp(LOGITS / temperature - LOGITS.max() / temperature)
    return np.asarray(weights / weights.sum())


def judge_sampler(drawn: np.ndarray) -> SequentialResult:
    expected = softmax(1.0)
    return sequential_test(
        lambda n: g_test(RANDOM.multinomial(n, drawn), expected).p_value,
        alpha=1e-5,
        num_draws=2000,
    )


@pytest.mark.parametrize("draw", [lambda: RANDOM.random(), lambda: RANDOM.random() ** 0.5])
def test_false_alarms_stay_below_alpha_for_exact_and_conservative_p_values(
    draw: Callable[[], float],
) -> None:
    alpha, runs = 0.05, 4000
    results = [
        sequential_test(lambda _: draw(), alpha=alpha, num_draws=10, stages=4) for _ in range(runs)
    ]
    assert is_at_most(sum(r.failed for r in results), runs, alpha)
    assert any(len(r.p_values) > 1 for r in results)


def test_the_bounds_spend_alpha_evenly_and_the_last_stage_decides() -> None:
    alpha, stages = 1e-3, 5
    gamma = (alpha / stages) ** (1 / stages)
    result = sequential_test(lambda _: gamma * 0.999, alpha=alpha, num_draws=7, stages=stages)
    assert len(result.bounds) == stages
    for stage, bound in enumerate(result.bounds):
        assert bound * gamma**stage == pytest.approx(alpha / stages)
    assert result.bounds[-1] == pytest.approx(gamma)
    assert result.failed
    assert result.num_draws == 7 + 4 * 7 * (stages - 1)


def test_a_right_sampler_passes_after_little_more_than_the_first_sample() -> None:
    results = [judge_sampler(softmax(1.0)) for _ in range(200)]
    assert is_at_most(sum(r.failed for r in results), 200, 1e-5)
    assert np.mean([r.num_draws for r in results]) < 2 * 2000


def test_a_temperature_ten_percent_off_is_found() -> None:
    results = [judge_sampler(softmax(1.1)) for _ in range(40)]
    assert is_at_least(sum(r.failed for r in results), 40, 0.9)
    assert np.mean([r.num_draws for r in results]) < 20_000


@pytest.mark.parametrize("field", ["num_draws", "growth", "stages"])
def test_a_count_below_one_is_refused(field: str) -> None:
    knobs = {"num_draws": 1, "growth": 1, "stages": 1, field: 0}
    with pytest.raises(ValueError, match=f"{field}=0"):
        sequential_test(lambda _: 0.5, alpha=0.1, **knobs)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_an_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        sequential_test(lambda _: 0.5, alpha=alpha, num_draws=1)
