"""Worked by hand from docs/policy.md P5: ends, aborts, and two steps in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pagetwin.engine.step import BeamSelection, FinishedSequence, Preemption

if TYPE_CHECKING:
    from tests.simulator.conftest import MakeReplica


def test_p5_1a_stop_conditions_are_checked_in_order_after_min_tokens(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica()
    stops: dict[str, Any] = {"stop_token_ids": (3, 4), "eos_token_ids": (3,), "min_tokens": 1}
    for name in "abcd":
        replica.submit(name, 2, max_tokens=2, **stops)
    plan = replica.plan_step()
    tokens = {f"{name}/0": 3 for name in "abcd"}
    assert replica.close(plan, tokens).finished == ()  # the first token stops nothing
    plan = replica.plan_step()
    strings = {"a/0": "x", "b/0": "x", "c/0": "x"}
    tokens = {"a/0": 3, "b/0": 4, "c/0": 9, "d/0": 9}
    assert replica.close(plan, tokens, stop_strings=strings).finished == (
        FinishedSequence("a/0", "stop"),
        FinishedSequence("b/0", "stop", 4),
        FinishedSequence("c/0", "stop", "x"),
        FinishedSequence("d/0", "length"),
    )


def test_p5_1a_a_sequence_that_outgrows_the_pool_ends_with_a_warning(
    make_replica: MakeReplica,
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica = make_replica(num_blocks=3)
    replica.submit("a", 7)
    replica.run_step()
    close_update = replica.close(replica.plan_step())
    assert close_update.finished == (FinishedSequence("a/0", "length"),)
    assert "num_blocks=3" in caplog.text


def test_p5_1b_a_selection_stands_before_the_release_of_blocks_outside_the_window(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=9, block_size=2, sliding_window=3)
    replica.submit("a", 4, width=2, max_tokens=3)  # blocks 1 and 2
    for parents in ((0, 0), (0, 1), (1, 1)):
        selection = BeamSelection(request_id="a", parents=parents, token_ids=(7, 8))
        replica.close(replica.plan_step(), selections=[selection])
    # First 1 leaves the window. Then a/0 takes 3 and a/1 takes 4. The last selection drops the old
    # a/0, which frees 3; only then 2 leaves the window, and its last holder is the new a/1.
    assert replica.block_table("a/0") == replica.block_table("a/1") == (0, 0, 4)
    replica.submit("z", 10)
    plan = replica.plan_step()
    assert [new.block_ids for new in plan.introduced] == [
        (0, 0, 4, 5),
        (0, 0, 4, 6),
        (7, 8, 1, 3, 2),
    ]


def test_p5_1c_a_failed_sequence_ends_with_an_error_and_the_others_go_on(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.submit("a", 4, max_tokens=1)
    replica.submit("b", 8)
    plan = replica.plan_step()  # a: 1; b: 2, 3
    # An error, though a token would have been its last.
    update = replica.close(plan, failed={"a/0": "no logit is finite"})
    assert update.finished == (FinishedSequence("a/0", "error", "no logit is finite"),)
    counters = replica.counters()
    assert (counters.num_free_blocks, counters.finished) == (9 - 2, 1)
    assert counters.num_cached_blocks == 3  # blocks enter the cache before the check
    plan = replica.plan_step()
    assert (plan.dropped, plan.ended_requests) == (("a/0",), ("a",))
    assert replica.shares(plan) == [("b/0", 8, 1)]


def test_p5_1c_one_sample_of_a_group_that_forks_may_fail(make_replica: MakeReplica) -> None:
    replica = make_replica()
    replica.submit("a", 6, n=3)
    update = replica.close(replica.plan_step(), failed={"a/1": "no token is allowed"})
    assert update.forked == (("a/0", "a/1"), ("a/0", "a/2"))
    assert update.finished == (FinishedSequence("a/1", "error", "no token is allowed"),)
    plan = replica.run_step()
    assert replica.shares(plan) == [("a/0", 6, 1), ("a/2", 6, 1)]
    assert len(plan.copies) == 1  # two hold block 2 still: the first to write copies it


def test_p5_1c_a_failed_beam_ends_its_group_preempted_beams_too(make_replica: MakeReplica) -> None:
    replica = make_replica(num_blocks=5)
    replica.submit("z", 4)
    replica.submit("a", 4, width=2, max_tokens=4, arrival_s=1.0)
    replica.submit("x", 8, arrival_s=2.0)
    selection = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
    replica.close(replica.plan_step(), selections=[selection])  # z: 1; both beams: 2; x: 3, 4
    plan = replica.plan_step()
    assert replica.shares(plan) == [("z/0", 4, 1), ("a/0", 4, 1)]  # with 4 and 3
    assert replica.counters().num_waiting == 2  # a/1 and x
    update = replica.close(plan, failed={"a/0": "no logit is finite"})
    assert update.finished == (
        FinishedSequence("a/0", "error", "no logit is finite"),
        FinishedSequence("a/1", "error", "no logit is finite"),
    )
    counters = replica.counters()
    assert (counters.num_running, counters.num_waiting, counters.num_free_blocks) == (1, 1, 2)
    plan = replica.plan_step()
    assert (plan.dropped, plan.ended_requests) == (("a/0",), ("a",))


def test_p5_1c_running_beams_end_in_beam_order_whichever_failed(make_replica: MakeReplica) -> None:
    for name in ("a/0", "a/1"):
        replica = make_replica()
        replica.submit("a", 4, width=2, max_tokens=4)
        selection = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
        replica.close(replica.plan_step(), selections=[selection])
        update = replica.close(replica.plan_step(), failed={name: "no logit is finite"})
        assert [ending.seq_id for ending in update.finished] == ["a/0", "a/1"]
        assert {ending.reason for ending in update.finished} == {"error"}
        assert not replica.has_unfinished_requests()
        assert replica.counters().num_free_blocks == 9


def test_p5_1c_a_beam_fails_after_its_caching_and_later_rows_are_ignored(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.submit("a", 3, width=2, max_tokens=4)
    selection = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
    replica.close(replica.plan_step(), selections=[selection])
    plan = replica.plan_step()
    assert replica.shares(plan) == [("a/0", 3, 1), ("a/1", 3, 1)]  # each fills a block of its own
    update = replica.close(plan, failed={"a/1": "second", "a/0": "first"})
    assert update.finished == (
        FinishedSequence("a/0", "error", "first"),
        FinishedSequence("a/1", "error", "first"),
    )
    assert replica.counters().num_cached_blocks == 1  # a/0's
    assert replica.counters().finished == 2


def test_p5_1c_the_reason_is_of_the_first_in_plan_order_and_the_ends_are_in_beam_order(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=5, num_host_blocks=2, preemption_mode="swap")
    replica.submit("z", 4, max_tokens=2)
    replica.submit("a", 4, width=2, max_tokens=4, arrival_s=1.0)
    replica.submit("x", 7, max_tokens=3, arrival_s=2.0)
    selection = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
    replica.close(replica.plan_step(), selections=[selection])
    for _ in range(3):  # as in P3.1a: a/0 comes back behind a/1
        replica.run_step()
    plan = replica.plan_step()
    assert replica.shares(plan) == [("a/1", 0, 5), ("a/0", 0, 5)]
    update = replica.close(plan, failed={"a/0": "later", "a/1": "earlier"})
    assert update.finished == (
        FinishedSequence("a/0", "error", "earlier"),
        FinishedSequence("a/1", "error", "earlier"),
    )


def test_p5_1c_a_failure_of_a_sequence_that_was_due_no_token_is_ignored(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(long_prefill_token_threshold=4)
    replica.submit("a", 6)
    replica.submit("b", 6, width=2, max_tokens=2)
    failures = {"a/0": "too early", "b/0": "too early", "c/0": "unknown"}
    plan = replica.plan_step()
    assert [row.samples for row in plan.scheduled] == [False, False]
    assert replica.close(plan, failed=failures).finished == ()
    plan = replica.plan_step()
    assert replica.shares(plan) == [("a/0", 4, 2), ("b/0", 4, 2)]
    assert len(replica.close(plan, failed=failures).finished) == 2


def test_p5_1c_a_group_fails_before_its_first_selection(make_replica: MakeReplica) -> None:
    replica = make_replica()
    replica.submit("a", 4, width=3, max_tokens=4)
    update = replica.close(replica.plan_step(), failed={"a/0": "no logit is finite"})
    assert update.finished == (FinishedSequence("a/0", "error", "no logit is finite"),)
    assert not replica.has_unfinished_requests()


def test_p5_1c_a_failed_sequence_keeps_its_blocks_for_the_later_step(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(async_scheduling=True)
    replica.submit("a", 4)
    first, second = replica.plan_step(), replica.plan_step()
    update = replica.close(first, failed={"a/0": "no logit is finite"})
    assert update.finished == (FinishedSequence("a/0", "error", "no logit is finite"),)
    assert replica.counters().num_free_blocks == 9 - 2
    assert replica.close(second, failed={"a/0": "no logit is finite"}).finished == ()
    assert replica.counters().num_free_blocks == 9


def test_p5_2_an_abort_frees_blocks_when_the_step_in_flight_returns(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.submit("a", 8)
    plan = replica.plan_step()
    assert replica.abort_request("a")
    assert not replica.abort_request("a")
    assert replica.counters().num_free_blocks == 7
    assert replica.close(plan).finished == ()
    counters = replica.counters()
    assert (counters.num_free_blocks, counters.num_cached_blocks, counters.aborts) == (9, 0, 1)
    assert replica.schedule() is None


def test_p5_3_the_next_step_is_planned_with_a_placeholder(make_replica: MakeReplica) -> None:
    replica = make_replica(async_scheduling=True)
    replica.submit("a", 4, max_tokens=3)
    first = replica.plan_step()
    second = replica.plan_step()
    assert replica.shares(second) == [("a/0", 4, 1)]
    assert second.scheduled[0].samples
    assert replica.schedule() is None  # two steps are awaited
    replica.close(first)
    third = replica.plan_step()
    assert replica.shares(third) == [("a/0", 5, 1)]
    replica.close(second)
    assert replica.schedule() is None  # the placeholder is the last of its max_tokens
    assert replica.close(third).finished == (FinishedSequence("a/0", "length"),)


def test_p5_3a_a_group_that_has_yet_to_fork_waits_for_its_result(make_replica: MakeReplica) -> None:
    replica = make_replica(async_scheduling=True, max_num_batched_tokens=8)
    replica.submit("a", 9, n=2)
    first = replica.plan_step()
    second = replica.plan_step()
    assert replica.shares(second) == [("a/0", 8, 1)]  # the prompt's last chunk may be planned
    replica.close(first)
    assert replica.schedule() is None
    assert replica.close(second).forked == (("a/0", "a/1"),)
    assert replica.shares(replica.plan_step()) == [("a/0", 9, 1), ("a/1", 9, 1)]


def test_p5_3b_while_a_step_is_in_flight_nothing_is_preempted(make_replica: MakeReplica) -> None:
    replica = make_replica(async_scheduling=True, num_blocks=4)
    replica.submit("a", 8)
    replica.submit("b", 4)
    first = replica.plan_step()
    before = replica.counters()
    assert replica.schedule() is None  # a and b need a block each, and none is free
    assert replica.counters() == before
    replica.close(first)
    assert replica.plan_step().preempted == (Preemption("b/0", "recompute"),)


def test_p5_3c_a_sequence_that_ends_keeps_its_blocks_for_the_later_step(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(async_scheduling=True)
    replica.submit("a", 4, eos_token_ids=(2,))
    replica.submit("b", 4)
    first, second = replica.plan_step(), replica.plan_step()
    assert replica.close(first, {"a/0": 2}).finished == (FinishedSequence("a/0", "stop"),)
    assert replica.counters().num_running == 1
    assert replica.counters().num_free_blocks == 9 - 4
    third = replica.plan_step()
    assert third.dropped == ("a/0",)
    assert replica.close(second, {"a/0": 2}).finished == ()
    assert replica.counters().num_free_blocks == 9 - 2
