"""Worked by hand from docs/policy.md P3: who gives up its blocks, and how it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagetwin.engine.step import BeamSelection, BlockCopy, Preemption

if TYPE_CHECKING:
    from tests.simulator.conftest import MakeReplica


def test_p3_1_the_last_admitted_is_preempted_and_returns_to_the_front(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=4)
    for name in "abc":
        replica.submit(name, 4)
    replica.run_step()
    plan = replica.run_step()
    # a needs a block: c gives up its one. b then needs one, too, and is itself the last.
    assert plan.preempted == (Preemption("c/0", "recompute"), Preemption("b/0", "recompute"))
    assert replica.shares(plan) == [("a/0", 4, 1)]
    assert plan.dropped == ("b/0", "c/0")
    assert replica.counters().num_waiting == 2
    replica.abort_request("a")
    plan = replica.run_step()
    assert [row.seq_id for row in plan.scheduled] == ["b/0"]  # the latest preempted stands first
    assert plan.introduced[0].token_ids[-1] == replica.TOKEN
    assert plan.new_requests == ()


def test_p3_1a_a_resting_beam_of_a_broken_up_group_goes_before_the_last_and_stands_behind(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=5, num_host_blocks=2, preemption_mode="swap")
    replica.submit("z", 4, max_tokens=2)
    replica.submit("a", 4, width=2, max_tokens=4, arrival_s=1.0)
    replica.submit("x", 7, max_tokens=3, arrival_s=2.0)
    selection = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
    replica.close(replica.plan_step(), selections=[selection])  # z: 1; both beams: 2; x: 3, 4
    # z takes 4, a/0 takes 3, and a/1 finds none; then z ends, and a/0 rests.
    plan = replica.run_step()
    assert plan.preempted == (Preemption("x/0", "swap"), Preemption("a/1", "recompute"))
    assert replica.shares(replica.run_step()) == [("x/0", 7, 1)]  # in 4 and 1; a/1 needs two
    plan = replica.run_step()  # x, the last of running, needs a third block
    assert plan.preempted == (Preemption("a/0", "recompute"),)
    assert replica.shares(plan) == [("x/0", 8, 1)]
    assert plan.scheduled[0].new_block_ids == (3,)  # a/0's tail
    # P3.2a: a/0 stands behind a/1, though it was preempted later.
    assert replica.shares(replica.plan_step()) == [("a/1", 0, 5), ("a/0", 0, 5)]


def test_p3_3_a_swapped_sequence_comes_back_with_its_bytes(make_replica: MakeReplica) -> None:
    replica = make_replica(num_blocks=5, num_host_blocks=3, preemption_mode="swap")
    replica.submit("a", 8, max_tokens=2)
    replica.submit("b", 7)
    replica.run_step()  # a: 1, 2; b: 3, 4
    plan = replica.run_step()
    assert plan.preempted == (Preemption("b/0", "swap"),)
    assert plan.swap_outs == (BlockCopy(3, 0), BlockCopy(4, 1))
    assert plan.scheduled[0].new_block_ids == (4,)  # b's tail was freed first
    assert replica.counters().num_free_host_blocks == 1
    plan = replica.run_step()  # a has ended: free are 3, 4, 2, 1
    assert plan.swap_ins == (BlockCopy(0, 3), BlockCopy(1, 4))
    assert replica.shares(plan) == [("b/0", 7, 1)]
    assert plan.introduced[0].block_ids == (3, 4)
    assert plan.scheduled[0].new_block_ids == ()
    counters = replica.counters()
    assert (counters.num_free_host_blocks, counters.preemptions_swap) == (3, 1)


def test_p3_3_without_room_in_the_host_pool_a_victim_is_recomputed(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=5, num_host_blocks=1, preemption_mode="swap")
    replica.submit("a", 8)
    replica.submit("b", 7)
    replica.run_step()
    assert replica.run_step().preempted == (Preemption("b/0", "recompute"),)


def test_p3_3a_a_shared_block_is_copied_out_once(make_replica: MakeReplica) -> None:
    replica = make_replica(num_blocks=6, num_host_blocks=3, preemption_mode="swap")
    replica.submit("a", 8)
    replica.submit("b", 8, n=2, arrival_s=1.0)
    replica.run_step()  # a: 1, 2; b/0 and b/1 share 3, 4
    plan = replica.run_step()
    # a takes 5; b/0 needs a block, b/1 gives up its share without freeing any, then b/0 goes.
    assert plan.preempted == (Preemption("b/1", "swap"), Preemption("b/0", "swap"))
    assert plan.swap_outs == (BlockCopy(3, 0), BlockCopy(4, 1))
    # b/1 was never introduced, so the executor has no row of it to drop.
    assert plan.dropped == ("b/0",)
    replica.abort_request("b")
    assert replica.counters().num_free_host_blocks == 3


def test_p3_5_a_forced_preemption_waits_for_the_plan_and_leaves_the_others_alone(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=10)
    for name in "abc":
        replica.submit(name, 4)
    replica.run_step()  # a: 1; b: 2; c: 3
    before = replica.counters()
    assert replica.preempt_request("b")
    assert replica.preempt_request("b")  # it is due once
    assert replica.counters() == before  # P3.5a
    plan = replica.run_step()
    assert plan.preempted == (Preemption("b/0", "recompute"),)
    assert plan.dropped == ("b/0",)
    assert replica.shares(plan) == [("a/0", 4, 1), ("c/0", 4, 1)]  # nothing is admitted
    assert replica.counters().preemptions_recompute == 1
    plan = replica.run_step()
    assert plan.preempted == ()
    assert replica.shares(plan) == [("a/0", 5, 1), ("c/0", 5, 1), ("b/0", 0, 5)]


def test_p3_5_what_does_not_run_is_not_preempted(make_replica: MakeReplica) -> None:
    replica = make_replica(max_num_seqs=1)
    replica.submit("a", 4, max_tokens=2)
    replica.submit("b", 4)
    assert not replica.preempt_request("a")  # it waits
    replica.run_step()
    assert replica.preempt_request("a")
    assert replica.run_step().preempted == (Preemption("a/0", "recompute"),)
    assert not replica.preempt_request("a")  # it waits again
    assert not replica.preempt_request("b")
    assert not replica.preempt_request("nobody")
    assert replica.run_step().preempted == ()  # a ends
    assert not replica.preempt_request("a")


def test_p3_5_the_last_in_running_goes_first_whoever_was_asked_for_first(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=12, num_host_blocks=3, preemption_mode="swap")
    replica.submit("a", 4)
    replica.submit("b", 4, n=2)
    replica.submit("c", 8)
    replica.run_step()  # a: 1; both of b: 2; c: 3, 4
    assert replica.preempt_request("a")
    assert replica.preempt_request("b")
    plan = replica.run_step()
    # Block 2 is copied out once (P3.3a), and then there is room for that of a.
    assert plan.preempted == tuple(Preemption(seq_id, "swap") for seq_id in ("b/1", "b/0", "a/0"))
    assert plan.swap_outs == (BlockCopy(2, 0), BlockCopy(1, 1))
    assert replica.shares(plan) == [("c/0", 8, 1)]


def test_p3_5_a_step_may_only_preempt(make_replica: MakeReplica) -> None:
    replica = make_replica()
    replica.submit("a", 4)
    replica.run_step()
    assert replica.preempt_request("a")
    plan = replica.run_step()
    assert (plan.preempted, plan.scheduled) == ((Preemption("a/0", "recompute"),), ())
    assert replica.shares(replica.run_step()) == [("a/0", 0, 5)]


def test_p3_5_all_beams_of_a_search_are_preempted_by_recompute(make_replica: MakeReplica) -> None:
    replica = make_replica(num_blocks=12, num_host_blocks=8, preemption_mode="swap")
    replica.submit("a", 4, width=2, max_tokens=4)
    selection = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
    replica.close(replica.plan_step(), selections=[selection])
    assert replica.preempt_request("a")
    plan = replica.run_step()
    assert plan.preempted == (Preemption("a/1", "recompute"), Preemption("a/0", "recompute"))
    assert replica.shares(replica.plan_step()) == [("a/0", 0, 5), ("a/1", 0, 5)]


def test_p3_5a_no_plan_is_made_ahead_while_a_preemption_is_due(make_replica: MakeReplica) -> None:
    replica = make_replica(async_scheduling=True)
    replica.submit("a", 4)
    replica.submit("b", 4)
    plan = replica.plan_step()
    assert replica.preempt_request("a")
    assert replica.schedule() is None
    replica.close(plan)
    plan = replica.plan_step()
    assert plan.preempted == (Preemption("a/0", "recompute"),)
    assert replica.shares(plan) == [("b/0", 4, 1)]
    assert replica.shares(replica.plan_step()) == [("b/0", 5, 1), ("a/0", 0, 5)]


def test_p3_5a_what_is_due_ends_with_its_request(make_replica: MakeReplica) -> None:
    replica = make_replica(async_scheduling=True)
    replica.submit("a", 4, max_tokens=1)
    replica.submit("b", 4)
    plan = replica.plan_step()
    assert replica.preempt_request("a")
    replica.close(plan)  # a ends
    replica.submit("a", 4)  # another one of that name
    plan = replica.plan_step()
    assert plan.preempted == ()
    assert replica.shares(plan) == [("b/0", 4, 1), ("a/0", 0, 4)]


def test_p3_5_where_a_forced_preemption_frees_too_little_others_follow(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=5)
    for name in "abcd":
        replica.submit(name, 4)
    replica.run_step()  # a: 1; b: 2; c: 3; d: 4
    assert replica.preempt_request("b")
    plan = replica.run_step()  # a takes 2, and c finds none
    assert plan.preempted == (Preemption("b/0", "recompute"), Preemption("d/0", "recompute"))
    assert replica.shares(plan) == [("a/0", 4, 1), ("c/0", 4, 1)]
    replica.abort_request("a")
    assert [row.seq_id for row in replica.plan_step().scheduled] == ["c/0", "d/0"]
