"""The budget of false alarms."""

import pytest

from pagetwin.conformance.statistics.family import FAMILY_ALPHA, split_alpha
from pagetwin.conformance.suite.runner import false_alarm_shares


def test_shares_follow_the_weights_and_add_up_to_the_total() -> None:
    shares = split_alpha({"a": 1.0, "b": 3.0}, 1e-3)
    assert shares == {"a": 2.5e-4, "b": 7.5e-4}


@pytest.mark.parametrize("weights", [{"a": 0.0, "b": 1.0}, {"a": -1.0}])
def test_weights_that_buy_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights must be positive"):
        split_alpha(weights)


def test_the_catalogue_spends_the_family_s_budget() -> None:
    shares = false_alarm_shares()
    assert len(shares) > 3
    assert sum(shares.values()) == pytest.approx(FAMILY_ALPHA)
