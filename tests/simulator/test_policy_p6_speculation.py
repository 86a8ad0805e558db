"""Worked by hand from docs/policy.md P6: lookahead slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulator.conftest import MakeReplica


def test_p6_1_lookahead_slots_are_reserved_beyond_the_tokens_of_the_step(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_lookahead_slots=2)
    replica.submit("a", 3)
    assert replica.run_step().introduced[0].block_ids == (1, 2)
