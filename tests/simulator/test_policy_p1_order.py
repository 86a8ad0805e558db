"""Worked by hand from docs/policy.md P1: who comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagetwin.engine.errors import ConfigError

if TYPE_CHECKING:
    from tests.simulator.conftest import MakeReplica


def test_p1_4_new_requests_wait_by_arrival_and_then_by_id(make_replica: MakeReplica) -> None:
    replica = make_replica()
    for name, arrival_s in (("b", 1.0), ("c", 0.0), ("a", 1.0)):
        replica.submit(name, 2, arrival_s=arrival_s)
    plan = replica.run_step()
    assert [row.seq_id for row in plan.scheduled] == ["c/0", "a/0", "b/0"]
    assert [request.request_id for request in plan.new_requests] == ["c", "a", "b"]


def test_p1_4_priority_comes_before_arrival(make_replica: MakeReplica) -> None:
    replica = make_replica(policy="priority", max_num_seqs=1)
    replica.submit("a", 2, priority=1, arrival_s=0.0)
    replica.submit("b", 2, priority=0, arrival_s=9.0)
    assert replica.shares(replica.run_step()) == [("b/0", 0, 2)]


def test_p1_4_an_unknown_policy_is_refused(make_replica: MakeReplica) -> None:
    with pytest.raises(ConfigError, match="shortest"):
        make_replica(policy="shortest")
