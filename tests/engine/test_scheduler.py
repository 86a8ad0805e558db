"""Clauses of docs/policy.md on the engine's scheduler, each by an example worked out by hand."""

from collections.abc import Callable
from typing import Any, Literal

import pytest

from pagetwin.engine.core import EngineCore
from pagetwin.engine.errors import RequestError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import (
    BeamSelection,
    BlockCopy,
    FinishedSequence,
    FinishReason,
    Preemption,
    StepPlan,
    StepResult,
    StepUpdate,
)

MakeCore = Callable[..., EngineCore]
MakeRequest = Callable[..., Request]


def close(
    scheduler: Scheduler,
    plan: StepPlan,
    token: int = 1,
    *,
    samples: int = 1,
    selections: tuple[BeamSelection, ...] = (),
) -> StepUpdate:
    """Closes a step; every sequence due a token gets the same one."""
    sampled = {entry.seq_id: token for entry in plan.scheduled if entry.samples}
    for seq_id in list(sampled):
        request_id = seq_id.rpartition("/")[0]
        sampled |= {f"{request_id}/{index}": token for index in range(1, samples)}
    result = StepResult(step=plan.step, sampled=sampled, selections=selections)
    return scheduler.update(plan, result)


def next_plan(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    return plan


def tokens_given(plan: StepPlan) -> dict[str, int]:
    return {entry.seq_id: entry.num_scheduled_tokens for entry in plan.scheduled}


@pytest.mark.parametrize(
    ("prompt", "knobs", "message"),
    [
        (0, {}, "the prompt has no token"),
        (64, {}, "prompt of 64 tokens and one output token are more than max_model_len=64"),
        (48, {"num_blocks": 13}, "needs 13 KV blocks of 4 tokens, the pool has 12"),
        (3, {"n": 9, "temperature": 1.0}, "9 samples are more than max_num_seqs=8; ask for fewer"),
        (8, {"num_blocks": 7, "beam_search": BeamSearchParams(beam_width=2)}, "needs 8 KV blocks"),
    ],
)
def test_p2_5_what_can_never_start_is_refused_and_changes_nothing(
    make_core: MakeCore, make_request: MakeRequest, prompt: int, knobs: dict[str, Any], message: str
) -> None:
    asked = {name: value for name, value in knobs.items() if name != "num_blocks"}
    core = make_core(**{name: value for name, value in knobs.items() if name not in asked})
    core.add_request(make_request("first", 3))
    before = core.scheduler.counters()
    with pytest.raises(RequestError, match=message):
        core.add_request(make_request("refused", prompt, **{"max_tokens": 8} | asked))
    assert core.scheduler.counters() == before
    with pytest.raises(RequestError, match="'first': the id is in use"):
        core.add_request(make_request("first", 3))


def test_p2_5_the_largest_prompt_that_fits_is_taken(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    core = make_core(num_blocks=13)
    core.add_request(make_request("a", 47))
    completed = core.step()
    assert completed is not None
    assert tokens_given(completed.plan) == {"a/0": 47}


def test_p2_1_a_prompt_is_computed_in_chunks_that_share_the_budget(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core(max_num_batched_tokens=10, long_prefill_token_threshold=7).scheduler
    scheduler.add_request(make_request("a", 12))
    scheduler.add_request(make_request("b", [2] * 9))
    plans = [next_plan(scheduler)]
    close(scheduler, plans[0])
    plans.append(next_plan(scheduler))
    close(scheduler, plans[1])
    plans.append(next_plan(scheduler))
    assert [tokens_given(plan) for plan in plans] == [
        {"a/0": 7, "b/0": 3},
        {"a/0": 5, "b/0": 5},
        {"a/0": 1, "b/0": 1},
    ]
    assert [[entry.samples for entry in plan.scheduled] for plan in plans] == [
        [False, False],
        [True, False],
        [True, True],
    ]


def test_p2_3_the_first_that_does_not_fit_ends_admission(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core(num_blocks=6, enable_prefix_caching=False).scheduler
    for name, prompt in (("a", 10), ("big", 11), ("small", 2)):
        scheduler.add_request(make_request(name, prompt))
    assert list(tokens_given(next_plan(scheduler))) == ["a/0"]


def test_p2_4_the_watermark_holds_back_admission_only_while_something_runs(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core(num_blocks=6, watermark_blocks=3).scheduler
    scheduler.add_request(make_request("a", 10))
    scheduler.add_request(make_request("b", 2))
    assert list(tokens_given(next_plan(scheduler))) == ["a/0"]


def test_p2_4_a_prompt_of_whole_blocks_leaves_one_block_to_compute(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    core = make_core(enable_partial_hits=False)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    core.add_request(make_request("a", prompt, max_tokens=1))
    assert core.step() is not None
    core.add_request(make_request("b", prompt, max_tokens=1))
    completed = core.step()
    assert completed is not None
    [entry] = completed.plan.scheduled
    assert (entry.num_computed_tokens, entry.num_scheduled_tokens) == (4, 4)


def test_p2_4a_a_partial_hit_copies_the_longest_run_and_pins_its_source(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core().scheduler
    for name, prompt in (("a", [1, 2, 9, 9, 9]), ("b", [1, 2, 3, 9, 9]), ("c", [1, 2, 3, 8, 8])):
        scheduler.add_request(make_request(name, prompt, max_tokens=1))
    close(scheduler, next_plan(scheduler))
    scheduler.add_request(make_request("d", [1, 2, 3, 4, 5]))
    plan = next_plan(scheduler)
    # Blocks 1, 3 and 5 cache the first blocks of a, b and c; b's is the smaller of two with a
    # run of three. It leaves the free queue until the copy has run, so the first taken is 7.
    assert plan.copies == (BlockCopy(3, 7),)
    assert plan.scheduled[0].num_computed_tokens == 3
    assert plan.introduced[0].num_cached_tokens == 3
    free = scheduler.counters().num_free_blocks
    close(scheduler, plan)
    assert scheduler.counters().num_free_blocks == free + 1
    assert scheduler.counters().partial_hits == 1


def test_p2_4c_a_request_that_fits_only_without_its_partial_hit_goes_without(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core(num_blocks=3).scheduler
    scheduler.add_request(make_request("a", [1, 2, 3, 4, 5], max_tokens=1))
    close(scheduler, next_plan(scheduler))
    scheduler.add_request(make_request("b", [1, 2, 9, 9, 9], max_tokens=1))
    plan = next_plan(scheduler)
    assert plan.copies == ()
    assert plan.scheduled[0].num_computed_tokens == 0


def test_p2_4_hits_are_skipped_when_prompt_logprobs_are_asked_for(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    core = make_core()
    core.add_request(make_request("a", 9, max_tokens=1))
    core.step()
    core.add_request(make_request("b", 9, max_tokens=1, prompt_logprobs=0))
    completed = core.step()
    assert completed is not None
    assert tokens_given(completed.plan) == {"b/0": 9}


def test_p2_8_a_group_counts_all_its_samples_and_forks_when_its_prompt_is_complete(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core(max_num_seqs=4, max_num_batched_tokens=4).scheduler
    scheduler.add_request(make_request("a", 6, n=3, temperature=1.0))
    scheduler.add_request(make_request("b", 2, n=2, temperature=1.0))
    plan = next_plan(scheduler)
    assert tokens_given(plan) == {"a/0": 4}
    assert scheduler.counters().num_running == 3
    assert close(scheduler, plan).forked == ()
    plan = next_plan(scheduler)
    assert tokens_given(plan) == {"a/0": 2}
    assert close(scheduler, plan, samples=3).forked == (("a/0", "a/1"), ("a/0", "a/2"))
    # Block 2 holds the prompt's tail and three sequences: two copy it, the last writes in place.
    plan = next_plan(scheduler)
    assert plan.copies == (BlockCopy(2, 3), BlockCopy(2, 4))
    assert scheduler.block_table("a/0") == (1, 3)
    assert scheduler.block_table("a/1") == (1, 4)
    assert scheduler.block_table("a/2") == (1, 2)
    assert plan.scheduled[0].replaced_blocks == ((1, 3),)
    assert [new.seq_id for new in plan.introduced] == ["a/1", "a/2"]
    assert scheduler.counters().cow_copies == 2


def test_p2_8b_a_selection_forks_in_beam_order_and_frees_the_old_tables(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core().scheduler
    scheduler.add_request(make_request("a", 5, beam_search=BeamSearchParams(beam_width=2)))
    plan = next_plan(scheduler)
    first = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
    close(scheduler, plan, selections=(first,))
    plan = next_plan(scheduler)
    assert tokens_given(plan) == {"a/0": 1, "a/1": 1}
    assert [new.token_ids[-1] for new in plan.introduced] == [7, 8]
    both_from_one = BeamSelection(request_id="a", parents=(1, 1), token_ids=(3, 4))
    close(scheduler, plan, selections=(both_from_one,))
    assert scheduler.block_table("a/0") == scheduler.block_table("a/1") == (1, 2)
    plan = next_plan(scheduler)
    over = BeamSelection(request_id="a", finished=True)
    update = close(scheduler, plan, selections=(over,))
    assert update.finished == (FinishedSequence("a/0", "stop"), FinishedSequence("a/1", "stop"))
    assert scheduler.counters().num_free_blocks == 19
    assert not scheduler.has_unfinished_requests()


def test_p3_1_the_last_admitted_is_preempted_and_returns_to_the_front(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core(num_blocks=5, enable_prefix_caching=False).scheduler
    for name in "abc":
        scheduler.add_request(make_request(name, 4 if name != "c" else 3))
    close(scheduler, next_plan(scheduler))
    plan = next_plan(scheduler)
    # a takes the fourth block; b then takes c's, whose recompute begins in a later step.
    assert plan.preempted == (Preemption("c/0", "recompute"),)
    assert tokens_given(plan) == {"a/0": 1, "b/0": 1}
    assert plan.dropped == ("c/0",)
    assert scheduler.counters().num_waiting == 1


def test_p3_3_swap_falls_back_to_recompute_without_host_blocks(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    cases: list[tuple[int, Literal["swap", "recompute"]]] = [(1, "swap"), (0, "recompute")]
    for num_host_blocks, mode in cases:
        scheduler = make_core(
            num_blocks=5,
            enable_prefix_caching=False,
            preemption_mode="swap",
            num_host_blocks=num_host_blocks,
        ).scheduler
        for name in "abc":
            scheduler.add_request(make_request(name, 4 if name != "c" else 3))
        close(scheduler, next_plan(scheduler))
        plan = next_plan(scheduler)
        assert plan.preempted == (Preemption("c/0", mode),)
        assert plan.swap_outs == ((BlockCopy(3, 0),) if mode == "swap" else ())


def test_p3_3b_a_swapped_sequence_returns_with_its_blocks_and_frees_the_hosts(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    core = make_core(
        num_blocks=5, enable_prefix_caching=False, preemption_mode="swap", num_host_blocks=2
    )
    for name in "abc":
        core.add_request(make_request(name, 4 if name != "c" else 3, max_tokens=3))
    swapped_in = []
    while core.has_unfinished_requests():
        completed = core.step()
        assert completed is not None
        swapped_in += list(completed.plan.swap_ins)
    assert [copy.source for copy in swapped_in] == [0]
    assert core.scheduler.counters().num_free_host_blocks == 2
    assert core.scheduler.counters().preemptions_swap == 1


def test_p4_7_blocks_outside_the_window_become_null_entries(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core(sliding_window=5).scheduler
    scheduler.add_request(make_request("a", 12))
    close(scheduler, next_plan(scheduler))
    # The next query, at position 12, sees positions 8 to 12: blocks 0 and 1 are outside.
    assert scheduler.block_table("a/0") == (0, 0, 3)
    assert scheduler.counters().num_free_blocks == 18
    assert scheduler.counters().num_cached_blocks == 3


def test_p4_8_the_cache_is_reset_only_while_no_sequence_holds_blocks(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    core = make_core()
    core.add_request(make_request("a", 9, max_tokens=2))
    core.step()
    assert not core.reset_prefix_cache()
    core.step()
    assert core.scheduler.counters().num_cached_blocks == 2
    assert core.reset_prefix_cache()
    assert core.scheduler.counters().num_cached_blocks == 0


@pytest.mark.parametrize(
    ("knobs", "tokens", "expected"),
    [
        ({"eos_token_ids": (3,)}, [1, 3], ("stop", None)),
        ({"eos_token_ids": (3,), "ignore_eos": True}, [3, 3, 3, 3], ("length", None)),
        ({"eos_token_ids": (3,), "min_tokens": 2}, [3, 3, 3], ("stop", None)),
        ({"stop_token_ids": (2,), "ignore_eos": True}, [1, 2], ("stop", 2)),
        ({}, [1, 1, 1, 1], ("length", None)),
        ({"max_tokens": None}, [1] * 61, ("length", None)),
    ],
)
def test_p5_1_a_sequence_ends_at_the_first_stop_condition(
    make_core: MakeCore,
    make_request: MakeRequest,
    knobs: dict[str, Any],
    tokens: list[int],
    expected: tuple[FinishReason, int | None],
) -> None:
    scheduler = make_core().scheduler
    scheduler.add_request(make_request("a", 3, **knobs))
    for index, token in enumerate(tokens):
        update = close(scheduler, next_plan(scheduler), token)
        assert bool(update.finished) == (index == len(tokens) - 1)
    assert update.finished == (FinishedSequence("a/0", *expected),)


def test_p5_1a_a_sequence_that_outgrows_the_pool_ends_with_a_warning(
    make_core: MakeCore, make_request: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    core = make_core(num_blocks=4)
    core.add_request(make_request("a", 8, max_tokens=None))
    while core.has_unfinished_requests():
        completed = core.step()
    assert completed is not None
    assert completed.update.finished == (FinishedSequence("a/0", "length"),)
    assert "a/0 ends after 13 tokens: the KV pool of 3 blocks of 4 tokens" in caplog.text


def test_p5_2_abort_works_in_every_state_and_only_once(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core(
        num_blocks=5, enable_prefix_caching=False, preemption_mode="swap", num_host_blocks=1
    ).scheduler
    for name in "abcd":
        scheduler.add_request(make_request(name, 4))
    close(scheduler, next_plan(scheduler))
    plan = next_plan(scheduler)
    assert [victim.mode for victim in plan.preempted] == ["swap", "recompute"]
    close(scheduler, plan)
    for name in "abcd":
        assert scheduler.abort_request(name)
        scheduler.check_invariants()
        assert not scheduler.abort_request(name)
    counters = scheduler.counters()
    assert (counters.num_free_blocks, counters.num_free_host_blocks) == (4, 1)
    assert counters.aborts == 4
    assert not scheduler.has_unfinished_requests()


def test_p5_3_a_plan_is_made_while_the_step_before_is_in_flight(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core().scheduler
    scheduler.add_request(make_request("a", 3, max_tokens=2))
    first, second = next_plan(scheduler), next_plan(scheduler)
    assert second.scheduled[0].num_computed_tokens == 3
    # The second token will be the last, whatever it is, so there is no third step.
    with pytest.raises(ValueError, match="two steps are in flight"):
        scheduler.schedule()
    close(scheduler, first)
    assert scheduler.schedule() is None
    assert close(scheduler, second).finished == (FinishedSequence("a/0", "length"),)


def test_p5_3b_nothing_is_preempted_while_a_step_is_in_flight(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core(num_blocks=5, enable_prefix_caching=False).scheduler
    for name in "abc":
        scheduler.add_request(make_request(name, 4))
    first = next_plan(scheduler)
    before = scheduler.counters()
    assert scheduler.schedule() is None
    assert scheduler.counters() == before
    close(scheduler, first)
    assert next_plan(scheduler).preempted == (Preemption("c/0", "recompute"),)


def test_p5_3c_blocks_of_a_step_in_flight_are_freed_when_it_returns(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core().scheduler
    scheduler.add_request(make_request("a", 3, eos_token_ids=(2,)))
    first, second = next_plan(scheduler), next_plan(scheduler)
    assert close(scheduler, first, token=2).finished
    assert scheduler.counters().num_running == 0
    assert scheduler.counters().num_free_blocks == 18
    with pytest.raises(RequestError, match="the id is in use"):
        scheduler.add_request(make_request("a", 3))
    assert close(scheduler, second).finished == ()
    assert scheduler.counters().num_free_blocks == 19


def test_a_result_takes_effect_once_and_in_the_order_of_the_plans(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core().scheduler
    scheduler.add_request(make_request("a", 3))
    first, second = next_plan(scheduler), next_plan(scheduler)
    with pytest.raises(ValueError, match="the oldest step in flight is 0"):
        close(scheduler, second)
    close(scheduler, first)
    before = scheduler.counters()
    with pytest.raises(ValueError, match="results take effect once"):
        close(scheduler, first)
    assert scheduler.counters() == before


def test_prefix_queries_count_the_tokens_that_were_looked_up(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    core = make_core()
    for name in "ab":
        core.add_request(make_request(name, 9, max_tokens=1))
        core.step()
    counters = core.scheduler.counters()
    # The token that the step is about to sample is not one of them.
    assert (counters.prefix_queries, counters.prefix_hit_tokens) == (18, 8)


def test_p5_1c_a_failed_sample_ends_alone(make_core: MakeCore, make_request: MakeRequest) -> None:
    scheduler = make_core().scheduler
    scheduler.add_request(make_request("a", 3, n=2, temperature=1.0))
    scheduler.add_request(make_request("b", 3))
    plan = next_plan(scheduler)
    result = StepResult(step=0, sampled={"a/0": 1, "b/0": 1}, failed={"a/1": "NaN"})
    assert scheduler.update(plan, result).finished == (FinishedSequence("a/1", "error", "NaN"),)
    assert list(tokens_given(next_plan(scheduler))) == ["a/0", "b/0"]


def test_p5_1c_a_failed_beam_ends_its_group(make_core: MakeCore, make_request: MakeRequest) -> None:
    scheduler = make_core().scheduler
    scheduler.add_request(make_request("a", 5, beam_search=BeamSearchParams(beam_width=2)))
    first = BeamSelection(request_id="a", parents=(0, 0), token_ids=(7, 8))
    close(scheduler, next_plan(scheduler), selections=(first,))
    plan = next_plan(scheduler)
    update = scheduler.update(plan, StepResult(step=1, failed={"a/1": "NaN"}))
    assert [(end.seq_id, end.reason) for end in update.finished] == [
        ("a/0", "error"),
        ("a/1", "error"),
    ]
    assert not scheduler.has_unfinished_requests()
    assert scheduler.counters().num_free_blocks == 19
