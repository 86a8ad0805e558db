"""Worked by hand from docs/policy.md P4: which block is taken, cached and freed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pagetwin.engine.request import MediaSpan

if TYPE_CHECKING:
    from tests.simulator.conftest import MakeReplica


def test_p4_1_blocks_are_freed_last_first_and_taken_from_the_front(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=6)
    replica.submit("a", 7, max_tokens=1)
    assert replica.run_step().introduced[0].block_ids == (1, 2)
    replica.submit("b", 18)
    assert replica.run_step().introduced[0].block_ids == (3, 4, 5, 2, 1)


def test_p4_6_of_two_equal_blocks_the_first_stays_the_cached_one(make_replica: MakeReplica) -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.submit("a", range(5))
    replica.submit("b", range(5))
    replica.run_step()
    assert replica.counters().num_cached_blocks == 1
    assert replica.block_table("b/0") == (3, 4)
    replica.submit("c", range(5))
    assert replica.run_step().introduced[0].block_ids[0] == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_salt": "s"},
        {"adapter_id": "x"},
        {"media": (MediaSpan(digest="d", offset=1, length=2),)},
        {"prompt_logprobs": 1},
    ],
)
def test_p4_6_what_makes_the_keys_differ_makes_no_hit(
    make_replica: MakeReplica, fields: dict[str, Any]
) -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.submit("a", range(9), max_tokens=1)
    replica.run_step()
    replica.submit("b", range(9), **fields)
    assert replica.shares(replica.run_step()) == [("b/0", 0, 9)]


def test_p4_7_blocks_outside_the_window_become_null(make_replica: MakeReplica) -> None:
    replica = make_replica(sliding_window=5)
    replica.submit("a", 7)
    replica.run_step()
    assert replica.block_table("a/0") == (1, 2)  # 4 <= 7 - 5 + 1 does not hold
    replica.run_step()
    assert replica.block_table("a/0") == (0, 2)  # 4 <= 8 - 5 + 1 does
    assert replica.counters().num_free_blocks == 8


def test_p4_8_the_prefix_cache_is_cleared_only_while_no_sequence_holds_blocks(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.submit("a", 5, max_tokens=2)
    replica.run_step()
    assert not replica.reset_prefix_cache()
    assert replica.counters().num_cached_blocks == 1
    replica.run_step()
    assert replica.reset_prefix_cache()
    assert (replica.counters().num_cached_blocks, replica.counters().evictions) == (0, 0)
