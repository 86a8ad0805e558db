"""What the replica refuses at its interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagetwin.engine.step import StepResult

if TYPE_CHECKING:
    from tests.simulator.conftest import MakeReplica


def test_update_refuses_a_step_that_is_not_the_oldest_in_flight(make_replica: MakeReplica) -> None:
    replica = make_replica(async_scheduling=True)
    replica.submit("a", 4)
    first, second = replica.plan_step(), replica.plan_step()
    with pytest.raises(ValueError, match="step 0 is the oldest"):
        replica.close(second)
    replica.close(first)


def test_update_refuses_a_result_without_a_token_that_was_due(make_replica: MakeReplica) -> None:
    replica = make_replica()
    replica.submit("a", 4)
    plan = replica.plan_step()
    with pytest.raises(ValueError, match="no token for a/0"):
        replica.update(plan, StepResult(step=0))
