"""Worked by hand from docs/policy.md: small cases of its clauses, block by block."""

from collections.abc import Sequence
from typing import Any

import pytest

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError, RequestError
from pagetwin.engine.request import MediaSpan, Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.step import (
    BeamSelection,
    BlockCopy,
    FinishedSequence,
    Preemption,
    StepPlan,
    StepResult,
    StepUpdate,
)
from pagetwin.simulator.replica import Replica

TOKEN = 50


def make_replica(**knobs: Any) -> Replica:
    """Block size 4, plain caching off unless asked for."""
    cache: dict[str, Any] = {"num_blocks": 10, "block_size": 4, "enable_prefix_caching": False}
    scheduler: dict[str, Any] = {"max_model_len": 64, "max_num_batched_tokens": 64}
    scheduler["max_num_seqs"] = 8
    for name, value in knobs.items():
        (cache if name in CacheConfig.__struct_fields__ else scheduler)[name] = value
    return Replica(CacheConfig(**cache), SchedulerConfig(**scheduler))


def make_request(
    name: str, prompt: int | Sequence[int], *, width: int | None = None, **fields: Any
) -> Request:
    """A prompt of `prompt` tokens of its own, or the given ones; other fields by name."""
    if isinstance(prompt, int):
        prompt = [100 * ord(name[0]) + i for i in range(prompt)]
    own = {key: fields.pop(key) for key in list(fields) if key in Request.__struct_fields__}
    return Request(
        request_id=name,
        prompt_token_ids=tuple(prompt),
        sampling_params=SamplingParams(**{"max_tokens": 20, **fields}),
        beam_search=None if width is None else BeamSearchParams(beam_width=width),
        **own,
    )


def plan_step(replica: Replica) -> StepPlan:
    plan = replica.schedule()
    assert plan is not None
    replica.check_invariants()
    return plan


def close(
    replica: Replica,
    plan: StepPlan,
    tokens: dict[str, int] | None = None,
    *,
    stop_strings: dict[str, str] | None = None,
    selections: Sequence[BeamSelection] = (),
) -> StepUpdate:
    """Closes with TOKEN for each row that samples, and for samples 0..2 of its request."""
    sampled = {row.seq_id: TOKEN for row in plan.scheduled if row.samples}
    sampled |= {f"{s.rpartition('/')[0]}/{i}": TOKEN for s in list(sampled) for i in range(3)}
    result = StepResult(
        step=plan.step,
        sampled=sampled | (tokens or {}),
        stop_strings=stop_strings or {},
        selections=tuple(selections),
    )
    update = replica.update(plan, result)
    replica.check_invariants()
    return update


def run_step(replica: Replica, tokens: dict[str, int] | None = None) -> StepPlan:
    plan = plan_step(replica)
    close(replica, plan, tokens)
    return plan


def shares(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(r.seq_id, r.num_computed_tokens, r.num_scheduled_tokens) for r in plan.scheduled]


def test_p1_4_new_requests_wait_by_arrival_and_then_by_id() -> None:
    replica = make_replica()
    for name, arrival_s in (("b", 1.0), ("c", 0.0), ("a", 1.0)):
        replica.add_request(make_request(name, 2, arrival_s=arrival_s))
    plan = run_step(replica)
    assert [row.seq_id for row in plan.scheduled] == ["c/0", "a/0", "b/0"]
    assert [request.request_id for request in plan.new_requests] == ["c", "a", "b"]


def test_p1_4_priority_comes_before_arrival() -> None:
    replica = make_replica(policy="priority", max_num_seqs=1)
    replica.add_request(make_request("a", 2, priority=1, arrival_s=0.0))
    replica.add_request(make_request("b", 2, priority=0, arrival_s=9.0))
    assert shares(run_step(replica)) == [("b/0", 0, 2)]


def test_p1_4_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="shortest"):
        make_replica(policy="shortest")


def test_p2_1_the_budget_and_the_threshold_cut_prefills_and_decodes_go_on() -> None:
    replica = make_replica(max_num_batched_tokens=8, long_prefill_token_threshold=5)
    replica.add_request(make_request("a", 3))
    replica.add_request(make_request("b", 12))
    replica.add_request(make_request("c", 2))
    assert shares(run_step(replica)) == [("a/0", 0, 3), ("b/0", 0, 5)]
    plan = run_step(replica)
    assert shares(plan) == [("a/0", 3, 1), ("b/0", 5, 5), ("c/0", 0, 2)]
    assert [row.samples for row in plan.scheduled] == [True, False, True]


def test_p2_1_without_chunks_a_prompt_waits_for_room_in_the_budget() -> None:
    limits = {"max_model_len": 10, "max_num_batched_tokens": 10}
    replica = make_replica(enable_chunked_prefill=False, **limits)
    replica.add_request(make_request("a", 6))
    replica.add_request(make_request("b", 5))
    assert shares(run_step(replica)) == [("a/0", 0, 6)]
    assert shares(run_step(replica)) == [("a/0", 6, 1), ("b/0", 0, 5)]


def test_p2_3_the_first_that_does_not_fit_ends_admission() -> None:
    replica = make_replica(num_blocks=5)
    replica.add_request(make_request("a", 8))  # 2 of 4 blocks
    replica.add_request(make_request("b", 9))  # needs 3
    replica.add_request(make_request("c", 2))  # would fit, but stands behind b
    assert shares(run_step(replica)) == [("a/0", 0, 8)]


def test_p2_4b_the_watermark_counts_only_while_something_runs() -> None:
    replica = make_replica(num_blocks=5, watermark_blocks=2)
    replica.add_request(make_request("a", 12))  # 3 of 4 blocks: nothing runs, so it may
    replica.add_request(make_request("b", 2))
    assert shares(run_step(replica)) == [("a/0", 0, 12)]
    assert shares(run_step(replica)) == [("a/0", 12, 1)]


def test_p2_4_hits_leave_at_least_one_token_to_compute() -> None:
    replica = make_replica(enable_prefix_caching=True, enable_partial_hits=False)
    replica.add_request(make_request("a", range(8), max_tokens=1))
    run_step(replica)
    replica.add_request(make_request("b", range(8)))
    plan = run_step(replica)
    assert shares(plan) == [("b/0", 4, 4)]
    assert plan.introduced[0].num_cached_tokens == 4
    assert plan.introduced[0].block_ids == (1, 3)  # block 2 was freed to the back
    assert replica.counters().prefix_hit_tokens == 4


def test_p2_4a_the_longest_run_wins_and_ties_go_to_the_smaller_block() -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.add_request(make_request("a", [1, 2, 3, 4], max_tokens=1))
    replica.add_request(make_request("b", [1, 9, 9, 9], max_tokens=1))
    replica.add_request(make_request("c", [1, 2, 8, 8], max_tokens=1))
    run_step(replica)  # blocks 1, 2 and 3
    replica.add_request(make_request("d", [1, 2, 7, 7, 7], max_tokens=1))
    plan = plan_step(replica)
    assert plan.copies == (BlockCopy(1, 4),)  # 1 and 3 both share two tokens
    assert shares(plan) == [("d/0", 2, 3)]
    assert plan.introduced[0].num_cached_tokens == 2
    assert replica.counters().num_free_blocks == 9 - 3  # the source is held, and two are taken
    close(replica, plan)
    replica.add_request(make_request("e", [1, 2, 8, 8], max_tokens=1))
    plan = run_step(replica)
    assert plan.copies[0].source == 3  # three tokens in common; the fourth must be computed
    assert shares(plan) == [("e/0", 3, 1)]
    assert replica.counters().partial_hits == 2


def test_p2_4c_a_request_that_does_not_fit_with_its_partial_hit_is_tried_without() -> None:
    replica = make_replica(num_blocks=4, enable_prefix_caching=True)
    replica.add_request(make_request("a", [1, 2, 3, 4], max_tokens=1))
    run_step(replica)
    replica.add_request(make_request("b", [1, 2, 7, *range(20, 28)]))  # all three blocks
    plan = run_step(replica)
    assert plan.copies == ()
    assert plan.introduced[0].block_ids == (2, 3, 1)
    assert shares(plan) == [("b/0", 0, 11)]
    assert replica.counters().evictions == 1


@pytest.mark.parametrize(
    ("request_", "knobs", "message"),
    [
        (make_request("a", 0), {}, "no prompt token"),
        (make_request("a", 64), {}, "max_model_len=64"),
        (make_request("a", 36), {}, "needs 10 KV blocks"),
        (make_request("a", 35), {"num_lookahead_slots": 2}, "needs 10 KV blocks"),
        (make_request("a", 2, n=3), {"max_num_seqs": 2}, "max_num_seqs=2"),
        (make_request("a", 2, width=3), {"max_num_seqs": 2}, "max_num_seqs=2"),
        (make_request("a", 6, width=2, max_tokens=11), {}, "beams of 17 tokens"),
    ],
)
def test_p2_5_a_request_that_can_never_start_is_refused(
    request_: Request, knobs: dict[str, Any], message: str
) -> None:
    replica = make_replica(**knobs)
    with pytest.raises(RequestError, match=message):
        replica.add_request(request_)
    assert not replica.has_unfinished_requests()


def test_a_live_id_is_refused_and_a_finished_one_may_come_again() -> None:
    replica = make_replica()
    replica.add_request(make_request("a", 2, max_tokens=1))
    with pytest.raises(RequestError, match="'a' is in use"):
        replica.add_request(make_request("a", 3))
    run_step(replica)
    replica.add_request(make_request("a", 3))
    plan = plan_step(replica)
    assert (plan.dropped, plan.ended_requests) == (("a/0",), ("a",))
    replica.abort_request("a")
    with pytest.raises(RequestError, match="'a' is in use"):
        replica.add_request(make_request("a", 3))  # the step in flight holds its blocks
    close(replica, plan)
    replica.add_request(make_request("a", 3))


def test_p2_8_a_group_counts_its_samples_and_forks_after_its_prompt() -> None:
    replica = make_replica(max_num_seqs=3)
    replica.add_request(make_request("a", 3, n=2))
    replica.add_request(make_request("b", 3, n=2))
    plan = plan_step(replica)
    assert shares(plan) == [("a/0", 0, 3)]  # b's two samples do not fit beside a's
    assert replica.counters().num_running == 2
    assert close(replica, plan).forked == (("a/0", "a/1"),)
    assert replica.block_table("a/0") == replica.block_table("a/1") == (1,)
    # P4.5: a/0 copies the shared block, a/1 is then its last holder and writes in place.
    plan = run_step(replica)
    assert shares(plan) == [("a/0", 3, 1), ("a/1", 3, 1)]
    assert plan.copies == (BlockCopy(1, 2),)
    assert plan.scheduled[0].replaced_blocks == ((0, 2),)
    assert plan.scheduled[1].replaced_blocks == ()
    assert [new.seq_id for new in plan.introduced] == ["a/1"]
    assert plan.introduced[0].block_ids == (1,)
    assert replica.counters().cow_copies == 1


def test_p2_8b_a_selection_forks_the_parents_and_then_frees_the_old_tables() -> None:
    replica = make_replica()
    replica.add_request(make_request("a", 3, width=2, max_tokens=3))
    replica.add_request(make_request("b", 3))
    plan = plan_step(replica)
    first = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
    assert close(replica, plan, selections=[first]).forked == ()
    plan = plan_step(replica)
    assert shares(plan) == [("a/0", 3, 1), ("a/1", 3, 1), ("b/0", 3, 1)]
    assert [new.token_ids[-1] for new in plan.introduced] == [7, 8]
    assert plan.copies == (BlockCopy(1, 3),)
    swapped = BeamSelection(request_id="a", parents=(1, 1), token_ids=(5, 6))
    close(replica, plan, selections=[swapped])
    assert replica.block_table("a/0") == replica.block_table("a/1") == (1,)  # 3 is free
    plan = plan_step(replica)
    assert [new.token_ids[-2:] for new in plan.introduced] == [(8, 5), (8, 6)]
    assert plan.dropped == ()
    over = BeamSelection(request_id="a", finished=True)
    update = close(replica, plan, selections=[over])
    assert [ending.seq_id for ending in update.finished] == ["a/0", "a/1"]
    assert plan_step(replica).dropped == ("a/0", "a/1")


def test_p2_8a_a_computed_beam_waits_until_all_beams_are_computed() -> None:
    replica = make_replica(num_blocks=4)
    replica.add_request(make_request("a", 4, max_tokens=3))
    replica.add_request(make_request("b", 3, width=2, max_tokens=1))
    first = BeamSelection(request_id="b", parents=(0, 0), token_ids=(7, 8))
    close(replica, plan_step(replica), selections=[first])  # a: 1; b: 2 for both beams
    replica.add_request(make_request("c", 8, max_tokens=1))
    plan = plan_step(replica)  # a takes 3; b/0 lacks a copy until b/1 gives up its share
    assert plan.preempted == (Preemption("b/1", "recompute"),)
    assert shares(plan) == [("a/0", 4, 1), ("b/0", 3, 1)]
    close(replica, plan)  # b/1 waits, so nothing is selected
    plan = run_step(replica)
    assert shares(plan) == [("a/0", 5, 1)]  # b/0 is computed and idle; a ends
    plan = plan_step(replica)
    assert shares(plan) == [("b/1", 0, 4)]  # before c, and c does not fit beside it
    over = BeamSelection(request_id="b", finished=True)
    assert len(close(replica, plan, selections=[over]).finished) == 2


def test_p3_1_the_last_admitted_is_preempted_and_returns_to_the_front() -> None:
    replica = make_replica(num_blocks=4)
    for name in "abc":
        replica.add_request(make_request(name, 4))
    run_step(replica)
    plan = run_step(replica)
    # a needs a block: c gives up its one. b then needs one, too, and is itself the last.
    assert plan.preempted == (Preemption("c/0", "recompute"), Preemption("b/0", "recompute"))
    assert shares(plan) == [("a/0", 4, 1)]
    assert plan.dropped == ("b/0", "c/0")
    assert replica.counters().num_waiting == 2
    replica.abort_request("a")
    plan = run_step(replica)
    assert [row.seq_id for row in plan.scheduled] == ["b/0"]  # the latest preempted stands first
    assert plan.introduced[0].token_ids[-1] == TOKEN
    assert plan.new_requests == ()


def test_p3_3_a_swapped_sequence_comes_back_with_its_bytes() -> None:
    replica = make_replica(num_blocks=5, num_host_blocks=3, preemption_mode="swap")
    replica.add_request(make_request("a", 8, max_tokens=2))
    replica.add_request(make_request("b", 7))
    run_step(replica)  # a: 1, 2; b: 3, 4
    plan = run_step(replica)
    assert plan.preempted == (Preemption("b/0", "swap"),)
    assert plan.swap_outs == (BlockCopy(3, 0), BlockCopy(4, 1))
    assert plan.scheduled[0].new_block_ids == (4,)  # b's tail was freed first
    assert replica.counters().num_free_host_blocks == 1
    plan = run_step(replica)  # a has ended: free are 3, 4, 2, 1
    assert plan.swap_ins == (BlockCopy(0, 3), BlockCopy(1, 4))
    assert shares(plan) == [("b/0", 7, 1)]
    assert plan.introduced[0].block_ids == (3, 4)
    assert plan.scheduled[0].new_block_ids == ()
    counters = replica.counters()
    assert (counters.num_free_host_blocks, counters.preemptions_swap) == (3, 1)


def test_p3_3_without_room_in_the_host_pool_a_victim_is_recomputed() -> None:
    replica = make_replica(num_blocks=5, num_host_blocks=1, preemption_mode="swap")
    replica.add_request(make_request("a", 8))
    replica.add_request(make_request("b", 7))
    run_step(replica)
    assert run_step(replica).preempted == (Preemption("b/0", "recompute"),)


def test_p3_3a_a_shared_block_is_copied_out_once() -> None:
    replica = make_replica(num_blocks=6, num_host_blocks=3, preemption_mode="swap")
    replica.add_request(make_request("a", 8))
    replica.add_request(make_request("b", 8, n=2, arrival_s=1.0))
    run_step(replica)  # a: 1, 2; b/0 and b/1 share 3, 4
    plan = run_step(replica)
    # a takes 5; b/0 needs a block, b/1 gives up its share without freeing any, then b/0 goes.
    assert plan.preempted == (Preemption("b/1", "swap"), Preemption("b/0", "swap"))
    assert plan.swap_outs == (BlockCopy(3, 0), BlockCopy(4, 1))
    # b/1 was never introduced, so the executor has no row of it to drop.
    assert plan.dropped == ("b/0",)
    replica.abort_request("b")
    assert replica.counters().num_free_host_blocks == 3


def test_p4_1_blocks_are_freed_last_first_and_taken_from_the_front() -> None:
    replica = make_replica(num_blocks=6)
    replica.add_request(make_request("a", 7, max_tokens=1))
    assert run_step(replica).introduced[0].block_ids == (1, 2)
    replica.add_request(make_request("b", 18))
    assert run_step(replica).introduced[0].block_ids == (3, 4, 5, 2, 1)


def test_p4_6_of_two_equal_blocks_the_first_stays_the_cached_one() -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.add_request(make_request("a", range(5)))
    replica.add_request(make_request("b", range(5)))
    run_step(replica)
    assert replica.counters().num_cached_blocks == 1
    assert replica.block_table("b/0") == (3, 4)
    replica.add_request(make_request("c", range(5)))
    assert run_step(replica).introduced[0].block_ids[0] == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_salt": "s"},
        {"adapter_id": "x"},
        {"media": (MediaSpan(digest="d", offset=1, length=2),)},
        {"prompt_logprobs": 1},
    ],
)
def test_p4_6_what_makes_the_keys_differ_makes_no_hit(fields: dict[str, Any]) -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.add_request(make_request("a", range(9), max_tokens=1))
    run_step(replica)
    replica.add_request(make_request("b", range(9), **fields))
    assert shares(run_step(replica)) == [("b/0", 0, 9)]


def test_p4_7_blocks_outside_the_window_become_null() -> None:
    replica = make_replica(sliding_window=5)
    replica.add_request(make_request("a", 7))
    run_step(replica)
    assert replica.block_table("a/0") == (1, 2)  # 4 <= 7 - 5 + 1 does not hold
    run_step(replica)
    assert replica.block_table("a/0") == (0, 2)  # 4 <= 8 - 5 + 1 does
    assert replica.counters().num_free_blocks == 8


def test_p4_8_the_prefix_cache_is_cleared_only_while_no_sequence_holds_blocks() -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.add_request(make_request("a", 5, max_tokens=2))
    run_step(replica)
    assert not replica.reset_prefix_cache()
    assert replica.counters().num_cached_blocks == 1
    run_step(replica)
    assert replica.reset_prefix_cache()
    assert (replica.counters().num_cached_blocks, replica.counters().evictions) == (0, 0)


def test_p5_1a_stop_conditions_are_checked_in_order_after_min_tokens() -> None:
    replica = make_replica()
    stops: dict[str, Any] = {"stop_token_ids": (3, 4), "eos_token_ids": (3,), "min_tokens": 1}
    for name in "abcd":
        replica.add_request(make_request(name, 2, max_tokens=2, **stops))
    plan = plan_step(replica)
    tokens = {f"{name}/0": 3 for name in "abcd"}
    assert close(replica, plan, tokens).finished == ()  # the first token stops nothing
    plan = plan_step(replica)
    strings = {"a/0": "x", "b/0": "x", "c/0": "x"}
    tokens = {"a/0": 3, "b/0": 4, "c/0": 9, "d/0": 9}
    assert close(replica, plan, tokens, stop_strings=strings).finished == (
        FinishedSequence("a/0", "stop"),
        FinishedSequence("b/0", "stop", 4),
        FinishedSequence("c/0", "stop", "x"),
        FinishedSequence("d/0", "length"),
    )


def test_p5_1a_a_sequence_that_outgrows_the_pool_ends_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica = make_replica(num_blocks=3)
    replica.add_request(make_request("a", 7))
    run_step(replica)
    close_update = close(replica, plan_step(replica))
    assert close_update.finished == (FinishedSequence("a/0", "length"),)
    assert "num_blocks=3" in caplog.text


def test_p5_2_an_abort_frees_blocks_when_the_step_in_flight_returns() -> None:
    replica = make_replica(enable_prefix_caching=True)
    replica.add_request(make_request("a", 8))
    plan = plan_step(replica)
    assert replica.abort_request("a")
    assert not replica.abort_request("a")
    assert replica.counters().num_free_blocks == 7
    assert close(replica, plan).finished == ()
    counters = replica.counters()
    assert (counters.num_free_blocks, counters.num_cached_blocks, counters.aborts) == (9, 0, 1)
    assert replica.schedule() is None


def test_p5_3_the_next_step_is_planned_with_a_placeholder() -> None:
    replica = make_replica(async_scheduling=True)
    replica.add_request(make_request("a", 4, max_tokens=3))
    first = plan_step(replica)
    second = plan_step(replica)
    assert shares(second) == [("a/0", 4, 1)]
    assert second.scheduled[0].samples
    assert replica.schedule() is None  # two steps are awaited
    close(replica, first)
    third = plan_step(replica)
    assert shares(third) == [("a/0", 5, 1)]
    close(replica, second)
    assert replica.schedule() is None  # the placeholder is the last of its max_tokens
    assert close(replica, third).finished == (FinishedSequence("a/0", "length"),)


def test_p5_3a_a_group_that_has_yet_to_fork_waits_for_its_result() -> None:
    replica = make_replica(async_scheduling=True, max_num_batched_tokens=8)
    replica.add_request(make_request("a", 9, n=2))
    first = plan_step(replica)
    second = plan_step(replica)
    assert shares(second) == [("a/0", 8, 1)]  # the prompt's last chunk may be planned
    close(replica, first)
    assert replica.schedule() is None
    assert close(replica, second).forked == (("a/0", "a/1"),)
    assert shares(plan_step(replica)) == [("a/0", 9, 1), ("a/1", 9, 1)]


def test_p5_3b_while_a_step_is_in_flight_nothing_is_preempted() -> None:
    replica = make_replica(async_scheduling=True, num_blocks=4)
    replica.add_request(make_request("a", 8))
    replica.add_request(make_request("b", 4))
    first = plan_step(replica)
    before = replica.counters()
    assert replica.schedule() is None  # a and b need a block each, and none is free
    assert replica.counters() == before
    close(replica, first)
    assert plan_step(replica).preempted == (Preemption("b/0", "recompute"),)


def test_p5_3c_a_sequence_that_ends_keeps_its_blocks_for_the_later_step() -> None:
    replica = make_replica(async_scheduling=True)
    replica.add_request(make_request("a", 4, eos_token_ids=(2,)))
    replica.add_request(make_request("b", 4))
    first, second = plan_step(replica), plan_step(replica)
    assert close(replica, first, {"a/0": 2}).finished == (FinishedSequence("a/0", "stop"),)
    assert replica.counters().num_running == 1
    assert replica.counters().num_free_blocks == 9 - 4
    third = plan_step(replica)
    assert third.dropped == ("a/0",)
    assert close(replica, second, {"a/0": 2}).finished == ()
    assert replica.counters().num_free_blocks == 9 - 2


def test_p6_1_lookahead_slots_are_reserved_beyond_the_tokens_of_the_step() -> None:
    replica = make_replica(num_lookahead_slots=2)
    replica.add_request(make_request("a", 3))
    assert run_step(replica).introduced[0].block_ids == (1, 2)


def test_update_refuses_a_step_that_is_not_the_oldest_in_flight() -> None:
    replica = make_replica(async_scheduling=True)
    replica.add_request(make_request("a", 4))
    first, second = plan_step(replica), plan_step(replica)
    with pytest.raises(ValueError, match="step 0 is the oldest"):
        close(replica, second)
    close(replica, first)


def test_update_refuses_a_result_without_a_token_that_was_due() -> None:
    replica = make_replica()
    replica.add_request(make_request("a", 4))
    plan = plan_step(replica)
    with pytest.raises(ValueError, match="no token for a/0"):
        replica.update(plan, StepResult(step=0))
