"""Worked by hand from docs/policy.md P2: what a step holds, and who is admitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pagetwin.engine.errors import RequestError
from pagetwin.engine.step import BeamSelection, BlockCopy, Preemption, StepPlan

if TYPE_CHECKING:
    from tests.simulator.conftest import MakeReplica, SteppedReplica


def test_p2_1_the_budget_and_the_threshold_cut_prefills_and_decodes_go_on(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(max_num_batched_tokens=8, long_prefill_token_threshold=5)
    replica.submit("a", 3)
    replica.submit("b", 12)
    replica.submit("c", 2)
    assert replica.shares(replica.run_step()) == [("a/0", 0, 3), ("b/0", 0, 5)]
    plan = replica.run_step()
    assert replica.shares(plan) == [("a/0", 3, 1), ("b/0", 5, 5), ("c/0", 0, 2)]
    assert [row.samples for row in plan.scheduled] == [True, False, True]


def test_p2_1_without_chunks_a_prompt_waits_for_room_in_the_budget(
    make_replica: MakeReplica,
) -> None:
    limits = {"max_model_len": 10, "max_num_batched_tokens": 10}
    replica = make_replica(enable_chunked_prefill=False, **limits)
    replica.submit("a", 6)
    replica.submit("b", 5)
    assert replica.shares(replica.run_step()) == [("a/0", 0, 6)]
    assert replica.shares(replica.run_step()) == [("a/0", 6, 1), ("b/0", 0, 5)]


def test_p2_3_the_first_that_does_not_fit_ends_admission(make_replica: MakeReplica) -> None:
    replica = make_replica(num_blocks=5)
    replica.submit("a", 8)  # 2 of 4 blocks
    replica.submit("b", 9)  # needs 3
    replica.submit("c", 2)  # would fit, but stands behind b
    assert replica.shares(replica.run_step()) == [("a/0", 0, 8)]


def test_p2_4b_the_watermark_counts_only_while_something_runs(make_replica: MakeReplica) -> None:
    replica = make_replica(num_blocks=5, watermark_blocks=2)
    replica.submit("a", 12)  # 3 of 4 blocks: nothing runs, so it may
    replica.submit("b", 2)
    assert replica.shares(replica.run_step()) == [("a/0", 0, 12)]
    assert replica.shares(replica.run_step()) == [("a/0", 12, 1)]


def test_p2_4_hits_leave_at_least_one_token_to_compute(make_replica: MakeReplica) -> None:
    replica = make_replica(enable_prefix_caching=True, enable_partial_hits=False)
    replica.submit("a", range(8), max_tokens=1)
    replica.run_step()
    replica.submit("b", range(8))
    plan = replica.run_step()
    assert replica.shares(plan) == [("b/0", 4, 4)]
    assert plan.introduced[0].num_cached_tokens == 4
    assert plan.introduced[0].block_ids == (1, 3)  # block 2 was freed to the back
    assert replica.counters().prefix_hit_tokens == 4


def test_p2_4a_the_longest_run_wins_and_ties_go_to_the_smaller_block(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.submit("a", [1, 2, 3, 4], max_tokens=1)
    replica.submit("b", [1, 9, 9, 9], max_tokens=1)
    replica.submit("c", [1, 2, 8, 8], max_tokens=1)
    replica.run_step()  # blocks 1, 2 and 3
    replica.submit("d", [1, 2, 7, 7, 7], max_tokens=1)
    plan = replica.plan_step()
    assert plan.copies == (BlockCopy(1, 4),)  # 1 and 3 both share two tokens
    assert replica.shares(plan) == [("d/0", 2, 3)]
    assert plan.introduced[0].num_cached_tokens == 2
    assert replica.counters().num_free_blocks == 9 - 3  # the source is held, and two are taken
    replica.close(plan)
    replica.submit("e", [1, 2, 8, 8], max_tokens=1)
    plan = replica.run_step()
    assert plan.copies[0].source == 3  # three tokens in common; the fourth must be computed
    assert replica.shares(plan) == [("e/0", 3, 1)]
    assert replica.counters().partial_hits == 2


def test_p2_4c_a_request_that_does_not_fit_with_its_partial_hit_is_tried_without(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=4, enable_prefix_caching=True)
    replica.submit("a", [1, 2, 3, 4], max_tokens=1)
    replica.run_step()
    replica.submit("b", [1, 2, 7, *range(20, 28)])  # all three blocks
    plan = replica.run_step()
    assert plan.copies == ()
    assert plan.introduced[0].block_ids == (2, 3, 1)
    assert replica.shares(plan) == [("b/0", 0, 11)]
    assert replica.counters().evictions == 1


def make_waiting(make_replica: MakeReplica, **knobs: Any) -> SteppedReplica:
    """Requests wait for a prefix that another computes (P2.4e)."""
    knobs = {"num_blocks": 20, "enable_partial_hits": False, **knobs}
    return make_replica(enable_prefix_caching=True, wait_for_prefix=True, **knobs)


def test_p2_4e_a_request_waits_for_its_next_block_and_lets_others_by(
    make_replica: MakeReplica,
) -> None:
    replica = make_waiting(make_replica)
    replica.submit("a", [1, 2, 3, 4, 5, 6, 7, 8, 30])
    replica.submit("b", [1, 2, 3, 4, 5, 6, 7, 8, 31])
    replica.submit("c", [9, 2, 3, 4, 5])  # begins otherwise
    replica.submit("d", [1, 2, 3, 4, 40, 41, 42, 43, 44])  # shares the first block only
    assert replica.shares(replica.run_step()) == [("a/0", 0, 9), ("c/0", 0, 5)]
    plan = replica.run_step()
    assert replica.shares(plan) == [("a/0", 9, 1), ("c/0", 5, 1), ("b/0", 8, 1), ("d/0", 4, 5)]
    assert [new.num_cached_tokens for new in plan.introduced] == [8, 4]
    assert replica.counters().prefix_hit_tokens == 12


def test_p2_4e_a_chunk_holds_up_those_who_need_its_blocks_and_no_others(
    make_replica: MakeReplica,
) -> None:
    replica = make_waiting(make_replica, max_num_batched_tokens=8, max_num_seqs=4)
    replica.submit("a", range(16))
    replica.submit("b", [*range(16), 99])
    replica.submit("c", [*range(5), 98])
    replica.submit("d", [*range(8), 97])
    assert replica.shares(replica.run_step()) == [("a/0", 0, 8)]
    assert replica.shares(replica.run_step()) == [("a/0", 8, 8)]
    # b passes from one chunk's blocks to the next; c and d had what they share, but no budget.
    assert replica.shares(replica.run_step()) == [
        *(("a/0", 16, 1), ("b/0", 16, 1)),
        *(("c/0", 4, 2), ("d/0", 8, 1)),
    ]


def test_p2_4e_nobody_waits_for_the_last_token_or_for_a_block_that_is_not_filled(
    make_replica: MakeReplica,
) -> None:
    replica = make_waiting(make_replica)
    replica.submit("a", [1, 2, 3])
    replica.submit("b", [1, 2, 3, 4, 5])  # a's block is not full after this step
    replica.submit("c", [1, 2, 3, 4])  # its only block holds its last token
    assert replica.shares(replica.run_step()) == [("a/0", 0, 3), ("b/0", 0, 5), ("c/0", 0, 4)]


def test_p2_4e_who_skips_hits_does_not_wait_but_others_wait_for_it(
    make_replica: MakeReplica,
) -> None:
    replica = make_waiting(make_replica)
    replica.submit("a", [1, 2, 3, 4, 5], prompt_logprobs=1)
    replica.submit("b", [1, 2, 3, 4, 5], prompt_logprobs=1)
    replica.submit("c", [1, 2, 3, 4, 5])
    replica.submit("d", [1, 2, 3, 4, 5], cache_salt="salt")  # the same tokens under another key
    assert replica.shares(replica.run_step()) == [("a/0", 0, 5), ("b/0", 0, 5), ("d/0", 0, 5)]
    assert replica.shares(replica.run_step())[-1] == ("c/0", 4, 1)


def test_p2_4e_a_group_that_s_keeps_out_is_passed_over_first(make_replica: MakeReplica) -> None:
    replica = make_waiting(make_replica, max_num_seqs=3)
    replica.submit("a", [1, 2, 3, 4, 5], max_tokens=2)
    replica.submit("b", [1, 2, 3, 4, 6], n=3)
    replica.submit("c", [9, 9], max_tokens=1)
    replica.submit("d", [8, 8], max_tokens=1)
    assert [row[0] for row in replica.shares(replica.run_step())] == ["a/0", "c/0", "d/0"]
    replica.submit("e", [7, 7])
    assert replica.shares(replica.run_step()) == [("a/0", 5, 1)]  # now b is kept out, and keeps out
    assert replica.shares(replica.run_step()) == [("b/0", 4, 1)]


def test_p2_4e_blocks_of_the_step_in_flight_count_until_their_sequence_ends(
    make_replica: MakeReplica,
) -> None:
    replica = make_waiting(make_replica, async_scheduling=True)
    replica.submit("a", [1, 2, 3, 4, 5])
    first = replica.plan_step()
    replica.submit("b", [1, 2, 3, 4, 6])
    second = replica.plan_step()
    assert replica.shares(second) == [("a/0", 5, 1)]
    replica.close(first)
    assert replica.shares(replica.plan_step()) == [("a/0", 6, 1), ("b/0", 4, 1)]


def test_p2_4e_an_aborted_sequence_s_blocks_do_not_count(make_replica: MakeReplica) -> None:
    replica = make_waiting(make_replica, async_scheduling=True)
    replica.submit("a", [1, 2, 3, 4, 5])
    first = replica.plan_step()
    replica.submit("b", [1, 2, 3, 4, 6])
    replica.abort_request("a")
    assert replica.shares(replica.plan_step()) == [("b/0", 0, 5)]
    replica.close(first)


@pytest.mark.parametrize("is_known", [False, True])
def test_p2_4e_a_block_counts_once_its_placeholder_is_known(
    make_replica: MakeReplica, is_known: bool
) -> None:
    replica = make_waiting(make_replica, async_scheduling=True)
    replica.submit("a", [1, 2, 3])
    first = replica.plan_step()
    if not is_known:
        replica.submit("b", [1, 2, 3, 4, 5])
    second = replica.plan_step()  # fills a's block with its first token
    assert ("a/0", 3, 1) in replica.shares(second)
    replica.close(first, {"a/0": 4})
    if is_known:
        replica.submit("b", [1, 2, 3, 4, 5])
        assert replica.shares(replica.plan_step()) == [("a/0", 4, 1)]
    else:
        assert replica.shares(second)[-1] == ("b/0", 0, 5)


@pytest.mark.parametrize(
    ("prompt", "fields", "knobs", "message"),
    [
        (0, {}, {}, "no prompt token"),
        (64, {}, {}, "max_model_len=64"),
        (36, {}, {}, "needs 10 KV blocks"),
        (35, {}, {"num_lookahead_slots": 2}, "needs 10 KV blocks"),
        (2, {"n": 3}, {"max_num_seqs": 2}, "max_num_seqs=2"),
        (2, {"width": 3}, {"max_num_seqs": 2}, "max_num_seqs=2"),
        (6, {"width": 2, "max_tokens": 11}, {}, "beams of 17 tokens"),
    ],
)
def test_p2_5_a_request_that_can_never_start_is_refused(
    make_replica: MakeReplica,
    prompt: int,
    fields: dict[str, Any],
    knobs: dict[str, Any],
    message: str,
) -> None:
    replica = make_replica(**knobs)
    with pytest.raises(RequestError, match=message):
        replica.submit("a", prompt, **fields)
    assert not replica.has_unfinished_requests()


def test_p2_5_a_live_id_is_refused_and_a_finished_one_may_come_again(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica()
    replica.submit("a", 2, max_tokens=1)
    with pytest.raises(RequestError, match="'a' is in use"):
        replica.submit("a", 3)
    replica.run_step()
    replica.submit("a", 3)
    plan = replica.plan_step()
    assert (plan.dropped, plan.ended_requests) == (("a/0",), ("a",))
    replica.abort_request("a")
    with pytest.raises(RequestError, match="'a' is in use"):
        replica.submit("a", 3)  # the step in flight holds its blocks
    replica.close(plan)
    replica.submit("a", 3)


def test_p2_8_a_group_counts_its_samples_and_forks_after_its_prompt(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(max_num_seqs=3)
    replica.submit("a", 3, n=2)
    replica.submit("b", 3, n=2)
    plan = replica.plan_step()
    assert replica.shares(plan) == [("a/0", 0, 3)]  # b's two samples do not fit beside a's
    assert replica.counters().num_running == 2
    assert replica.close(plan).forked == (("a/0", "a/1"),)
    assert replica.block_table("a/0") == replica.block_table("a/1") == (1,)
    # P4.5: a/0 copies the shared block, a/1 is then its last holder and writes in place.
    plan = replica.run_step()
    assert replica.shares(plan) == [("a/0", 3, 1), ("a/1", 3, 1)]
    assert plan.copies == (BlockCopy(1, 2),)
    assert plan.scheduled[0].replaced_blocks == ((0, 2),)
    assert plan.scheduled[1].replaced_blocks == ()
    assert [new.seq_id for new in plan.introduced] == ["a/1"]
    assert plan.introduced[0].block_ids == (1,)
    assert replica.counters().cow_copies == 1


def test_p2_8b_a_selection_forks_the_parents_and_then_frees_the_old_tables(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica()
    replica.submit("a", 3, width=2, max_tokens=3)
    replica.submit("b", 3)
    plan = replica.plan_step()
    first = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
    assert replica.close(plan, selections=[first]).forked == ()
    plan = replica.plan_step()
    assert replica.shares(plan) == [("a/0", 3, 1), ("a/1", 3, 1), ("b/0", 3, 1)]
    assert [new.token_ids[-1] for new in plan.introduced] == [7, 8]
    assert plan.copies == (BlockCopy(1, 3),)
    swapped = BeamSelection(request_id="a", parents=(1, 1), token_ids=(5, 6))
    replica.close(plan, selections=[swapped])
    assert replica.block_table("a/0") == replica.block_table("a/1") == (1,)  # 3 is free
    plan = replica.plan_step()
    assert [new.token_ids[-2:] for new in plan.introduced] == [(8, 5), (8, 6)]
    assert plan.dropped == ()
    over = BeamSelection(request_id="a", finished=True)
    update = replica.close(plan, selections=[over])
    assert [ending.seq_id for ending in update.finished] == ["a/0", "a/1"]
    assert replica.plan_step().dropped == ("a/0", "a/1")


def test_p2_8a_a_computed_beam_waits_until_all_beams_are_computed(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=4)
    replica.submit("a", 4, max_tokens=3)
    replica.submit("b", 3, width=2, max_tokens=1)
    first = BeamSelection(request_id="b", parents=(0, 0), token_ids=(7, 8))
    replica.close(replica.plan_step(), selections=[first])  # a: 1; b: 2 for both beams
    replica.submit("c", 8, max_tokens=1)
    plan = replica.plan_step()  # a takes 3; b/0 lacks a copy until b/1 gives up its share
    assert plan.preempted == (Preemption("b/1", "recompute"),)
    assert replica.shares(plan) == [("a/0", 4, 1), ("b/0", 3, 1)]
    replica.close(plan)  # b/1 waits, so nothing is selected
    plan = replica.run_step()
    assert replica.shares(plan) == [("a/0", 5, 1)]  # b/0 is computed and idle; a ends
    plan = replica.plan_step()
    assert replica.shares(plan) == [("b/1", 0, 4)]  # before c, and c does not fit beside it
    over = BeamSelection(request_id="b", finished=True)
    assert len(replica.close(plan, selections=[over]).finished) == 2


def test_p2_6a_where_only_resting_beams_run_the_last_of_them_is_preempted(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=4, policy="priority")
    replica.submit("a", 4, max_tokens=3)
    replica.submit("b", 3, width=2, max_tokens=1, priority=1)
    first = BeamSelection(request_id="b", parents=(0, 0), token_ids=(7, 8))
    replica.close(replica.plan_step(), selections=[first])  # a: 1; b: 2 for both beams
    assert replica.run_step().preempted == (Preemption("b/1", "recompute"),)  # a takes 3
    replica.submit("c", 9, max_tokens=1)
    assert replica.shares(replica.run_step()) == [("a/0", 5, 1)]  # a ends; b/0 rests
    # Free are 3 and 1; c needs three blocks, and b/1, which b/0 waits for, stands behind it.
    plan = replica.run_step()
    assert plan == StepPlan(
        step=3,
        preempted=(Preemption("b/0", "recompute"),),
        dropped=("a/0", "b/0"),
        ended_requests=("a",),
    )
    assert replica.counters().num_waiting == 3
    assert replica.run_step().introduced[0].block_ids == (3, 1, 2)  # c runs alone and ends
    plan = replica.plan_step()
    assert replica.shares(plan) == [("b/0", 0, 4), ("b/1", 0, 4)]
    over = BeamSelection(request_id="b", finished=True)
    assert len(replica.close(plan, selections=[over]).finished) == 2


def test_p2_6a_a_beam_that_makes_room_stands_behind_those_preempted_before_it(
    make_replica: MakeReplica,
) -> None:
    replica = make_replica(num_blocks=5, num_host_blocks=2, preemption_mode="swap")
    replica.submit("z", 4, max_tokens=2)
    replica.submit("a", 4, width=2, max_tokens=4, arrival_s=1.0)
    replica.submit("x", 8, max_tokens=2, arrival_s=2.0)
    selection = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
    replica.close(replica.plan_step(), selections=[selection])  # z: 1; both beams: 2; x: 3, 4
    plan = replica.run_step()
    # x makes room for z and a/0, a/1 finds none; then z ends, and a/0 rests with 2 and 3.
    assert plan.preempted == (Preemption("x/0", "swap"), Preemption("a/1", "recompute"))
    assert replica.shares(plan) == [("z/0", 4, 1), ("a/0", 4, 1)]
    plan = replica.run_step()  # x needs 3 blocks, 2 are free, and it keeps a/1 out
    assert plan.preempted == (Preemption("a/0", "recompute"),)
    assert plan.scheduled == ()
    assert replica.shares(replica.run_step()) == [("x/0", 8, 1)]  # a/1 needs 2, and 1 is free
    assert replica.shares(replica.plan_step()) == [("a/1", 0, 5), ("a/0", 0, 5)]
