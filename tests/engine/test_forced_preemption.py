"""Forced preemptions (docs/policy.md P3.5, P3.5a), each clause by an example worked out by hand."""

from collections.abc import Callable

import pytest

from pagetwin.engine.core import EngineCore
from pagetwin.engine.request import Request
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import Preemption, StepPlan, StepResult

MakeCore = Callable[..., EngineCore]
MakeRequest = Callable[..., Request]


def next_plan(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    return plan


def close(scheduler: Scheduler, plan: StepPlan) -> None:
    sampled = {entry.seq_id: 1 for entry in plan.scheduled if entry.samples}
    scheduler.update(plan, StepResult(step=plan.step, sampled=sampled))


def running(make_core: MakeCore, make_request: MakeRequest, **knobs: object) -> Scheduler:
    """A scheduler that runs a, b, c, all decoding."""
    scheduler = make_core(enable_prefix_caching=False, **knobs).scheduler
    for name in "abc":
        scheduler.add_request(make_request(name, 5, max_tokens=9))
    close(scheduler, next_plan(scheduler))
    return scheduler


def ids(plan: StepPlan) -> list[str]:
    return [entry.seq_id for entry in plan.scheduled]


def test_it_strikes_the_next_plan_which_admits_nobody_and_returns_to_the_front(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = running(make_core, make_request)
    scheduler.add_request(make_request("d", 5))
    before = scheduler.counters()
    assert scheduler.preempt_request("b")
    assert scheduler.counters() == before
    plan = next_plan(scheduler)
    assert plan.preempted == (Preemption("b/0", "recompute"),)
    assert plan.dropped == ("b/0",)
    assert ids(plan) == ["a/0", "c/0"]
    assert scheduler.counters().preemptions_recompute == 1
    close(scheduler, plan)
    again = next_plan(scheduler)
    assert ids(again) == ["a/0", "c/0", "b/0", "d/0"]
    assert again.introduced[0].token_ids == (1,) * 6
    assert not again.preempted


def test_several_go_the_last_in_running_first_and_so_keep_their_order(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = running(make_core, make_request)
    assert scheduler.preempt_request("a")
    assert scheduler.preempt_request("c")
    assert scheduler.preempt_request("a")
    plan = next_plan(scheduler)
    assert [one.seq_id for one in plan.preempted] == ["c/0", "a/0"]
    assert ids(plan) == ["b/0"]
    close(scheduler, plan)
    assert ids(next_plan(scheduler)) == ["b/0", "a/0", "c/0"]


def test_swapped_out_where_the_host_has_room_else_recomputed(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = running(make_core, make_request, preemption_mode="swap", num_host_blocks=3)
    for name in "abc":
        assert scheduler.preempt_request(name)
    plan = next_plan(scheduler)
    assert [one.mode for one in plan.preempted] == ["swap", "recompute", "recompute"]
    assert len(plan.swap_outs) == 2
    assert not plan.scheduled
    close(scheduler, plan)
    back = next_plan(scheduler)
    assert ids(back) == ["c/0", "a/0", "b/0"]
    assert back.scheduled[0].num_computed_tokens == 5


def test_all_samples_of_a_request_are_preempted(
    make_core: MakeCore, make_request: MakeRequest
) -> None:
    scheduler = make_core().scheduler
    scheduler.add_request(make_request("a", 5, n=2, temperature=1.0, max_tokens=9))
    plan = next_plan(scheduler)
    scheduler.update(plan, StepResult(step=plan.step, sampled={"a/0": 1, "a/1": 2}))
    assert scheduler.preempt_request("a")
    assert [one.seq_id for one in next_plan(scheduler).preempted] == ["a/1", "a/0"]


def test_a_step_in_flight_is_awaited_first(make_core: MakeCore, make_request: MakeRequest) -> None:
    scheduler = running(make_core, make_request, async_scheduling=True)
    plan = next_plan(scheduler)
    assert scheduler.preempt_request("a")
    before = scheduler.counters()
    assert scheduler.schedule() is None
    assert scheduler.counters() == before
    close(scheduler, plan)
    assert next_plan(scheduler).preempted == (Preemption("a/0", "recompute"),)


@pytest.mark.parametrize("is_async", [False, True])
def test_one_that_is_due_ends_with_its_request(
    make_core: MakeCore, make_request: MakeRequest, is_async: bool
) -> None:
    scheduler = running(make_core, make_request, async_scheduling=is_async)
    plan = next_plan(scheduler) if is_async else None
    assert scheduler.preempt_request("b")
    assert scheduler.abort_request("b")
    after = next_plan(scheduler)
    assert not after.preempted
    assert ids(after) == ["a/0", "c/0"]
    if plan is not None:
        close(scheduler, plan)
    close(scheduler, after)
    scheduler.add_request(make_request("b", 5))
    assert ids(next_plan(scheduler)) == ["a/0", "c/0", "b/0"]


def test_what_does_not_run_is_not_preempted(make_core: MakeCore, make_request: MakeRequest) -> None:
    scheduler = running(make_core, make_request, max_num_seqs=3)
    scheduler.add_request(make_request("d", 5))
    assert not scheduler.preempt_request("d")
    assert not scheduler.preempt_request("nobody")
    assert scheduler.preempt_request("c")
    close(scheduler, next_plan(scheduler))
    assert not scheduler.preempt_request("c")
    assert not next_plan(scheduler).preempted
