"""The budget of false alarms, and evidence put together."""

import math

import numpy as np
import pytest

from pagetwin.conformance.statistics.family import discoveries, mean_log_e, split_alpha
from pagetwin.conformance.statistics.rates import is_at_most


def test_shares_follow_the_weights_and_never_exceed_the_total() -> None:
    assert split_alpha({"a": 0.5, "b": 0.25}, 1e-3) == {"a": 5e-4, "b": 2.5e-4}


@pytest.mark.parametrize("weights", [{"a": 0.6, "b": 0.5}, {"a": 0.0}, {"a": -1.0}])
def test_weights_that_spend_too_much_or_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        split_alpha(weights)


def test_the_mean_of_e_values_survives_large_ones() -> None:
    assert mean_log_e([0.0, 0.0]) == pytest.approx(0.0)
    assert mean_log_e([1000.0, 0.0]) == pytest.approx(1000 - math.log(2))


def test_strong_findings_are_kept_strongest_first() -> None:
    found = discoveries({"a": math.log(100), "b": 0.0, "c": math.log(80), "d": 0.1}, 0.05)
    assert found == ["a", "c"] or found == ["a"]
    assert discoveries({"a": math.log(100), "c": math.log(80)}, 0.05) == ["a", "c"]
    assert discoveries({"a": 0.0}, 0.05) == []


def test_false_discoveries_are_rare_where_nothing_is_to_be_found() -> None:
    """e-values of two coin hypotheses after ten throws; each finding here is false."""
    random, runs = np.random.default_rng(7), 500
    found = 0
    for _ in range(runs):
        heads = random.binomial(10, 0.5, 20)
        log_es = {
            str(i): float(h * math.log(1.6) + (10 - h) * math.log(0.4)) for i, h in enumerate(heads)
        }
        found += bool(discoveries(log_es, 0.1))
    assert is_at_most(found, runs, 0.1)
