"""Lockstep sees what differs: a twin with one fault against a sound twin."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pagetwin.conformance.lockstep import run_lockstep
from pagetwin.conformance.scenario import Scenario, load_scenario
from pagetwin.conformance.twins import fingerprint_executor
from pagetwin.engine.request import Request
from pagetwin.engine.step import (
    BlockCopy,
    Counters,
    SteppingScheduler,
    StepPlan,
    StepResult,
    StepUpdate,
)
from pagetwin.simulator.replica import Replica

replace = msgspec.structs.replace
SCENARIOS = [
    load_scenario(path) for path in sorted((Path(__file__).parent / "corpus").glob("*.json"))
]


class Faithful:
    """Passes everything on; a fault overrides one method."""

    def __init__(self, inner: SteppingScheduler) -> None:
        self.inner = inner
        self.applied = False

    def add_request(self, request: Request) -> None:
        self.inner.add_request(request)

    def abort_request(self, request_id: str) -> bool:
        return self.inner.abort_request(request_id)

    def preempt_request(self, request_id: str) -> bool:
        return self.inner.preempt_request(request_id)

    def reset_prefix_cache(self) -> bool:
        return self.inner.reset_prefix_cache()

    def has_unfinished_requests(self) -> bool:
        return self.inner.has_unfinished_requests()

    def schedule(self) -> StepPlan | None:
        return self.inner.schedule()

    def update(self, plan: StepPlan, result: StepResult) -> StepUpdate:
        return self.inner.update(plan, result)

    def counters(self) -> Counters:
        return self.inner.counters()

    def block_table(self, seq_id: str) -> tuple[int, ...]:
        return self.inner.block_table(seq_id)


class CorruptPlans(Faithful):
    """Plans are corrupted on their way out; the scheduler inside never knows."""

    def __init__(self, inner: SteppingScheduler, corrupt: Callable[[StepPlan], StepPlan]) -> None:
        super().__init__(inner)
        self.corrupt = corrupt

    def schedule(self) -> StepPlan | None:
        plan = self.inner.schedule()
        corrupted = self.corrupt(plan) if plan is not None else None
        self.applied |= corrupted != plan
        return corrupted


class SwappedEntries(Faithful):
    def block_table(self, seq_id: str) -> tuple[int, ...]:
        table = self.inner.block_table(seq_id)
        self.applied |= len(set(table[:2])) == 2
        return (*table[1::-1], *table[2:])


class ForgetfulAbort(Faithful):
    def abort_request(self, request_id: str) -> bool:
        found = self.inner.abort_request(request_id)
        self.applied |= found
        return False


class LenientReset(Faithful):
    def reset_prefix_cache(self) -> bool:
        self.applied |= not self.inner.reset_prefix_cache()
        return True


class AcceptsAll(Faithful):
    """Takes in what it must refuse, by a prompt that fits."""

    def add_request(self, request: Request) -> None:
        try:
            self.inner.add_request(request)
        except ValueError:
            self.applied = True


class LeakyCounters(Faithful):
    def counters(self) -> Counters:
        counters = self.inner.counters()
        self.applied |= counters.finished > 0
        return replace(counters, num_free_blocks=counters.num_free_blocks - (counters.finished > 0))


class SilentEnds(Faithful):
    def update(self, plan: StepPlan, result: StepResult) -> StepUpdate:
        update = self.inner.update(plan, result)
        self.applied |= bool(update.finished)
        return replace(update, finished=())


def lose_copy(plan: StepPlan) -> StepPlan:
    return replace(plan, copies=plan.copies[:-1])


def copy_backwards(plan: StepPlan) -> StepPlan:
    return replace(plan, copies=tuple(BlockCopy(c.destination, c.source) for c in plan.copies))


def exceed_budget(plan: StepPlan) -> StepPlan:
    last = plan.scheduled[-1]
    longer = replace(last, num_scheduled_tokens=last.num_scheduled_tokens + 1)
    return replace(plan, scheduled=(*plan.scheduled[:-1], longer))


def stale_block(plan: StepPlan) -> StepPlan:
    scheduled = tuple(
        replace(entry, new_block_ids=tuple(max(1, block - 1) for block in entry.new_block_ids))
        for entry in plan.scheduled
    )
    return replace(plan, scheduled=scheduled)


def forget_victim(plan: StepPlan) -> StepPlan:
    return replace(plan, preempted=plan.preempted[:-1])


PLAN_FAULTS = (lose_copy, copy_backwards, exceed_budget, stale_block, forget_victim)
OTHER_FAULTS = (
    SwappedEntries,
    ForgetfulAbort,
    LenientReset,
    AcceptsAll,
    LeakyCounters,
    SilentEnds,
)


def catches(scenario: Scenario, faulty: Faithful) -> bool:
    """Whether lockstep reports a difference; asserts that it does so exactly if it must."""
    sound = Replica(scenario.cache, scenario.scheduler)
    report = run_lockstep(scenario, sound, faulty, fingerprint_executor(scenario))
    assert report.equal != faulty.applied, report.explain()
    if not report.equal:
        assert report.difference is not None
        assert report.difference.fields
        assert "left and right differ" in report.explain()
    return not report.equal


@pytest.mark.parametrize("corrupt", PLAN_FAULTS, ids=lambda fault: fault.__name__)
def test_lockstep_catches_a_corrupted_plan(corrupt: Callable[[StepPlan], StepPlan]) -> None:
    caught = [
        catches(scenario, CorruptPlans(Replica(scenario.cache, scenario.scheduler), corrupt))
        for scenario in SCENARIOS
    ]
    assert any(caught)


@pytest.mark.parametrize("kind", OTHER_FAULTS, ids=lambda fault: fault.__name__)
def test_lockstep_catches_any_other_answer_that_differs(kind: type[Faithful]) -> None:
    caught = [
        catches(scenario, kind(Replica(scenario.cache, scenario.scheduler)))
        for scenario in SCENARIOS
    ]
    assert any(caught)


def test_a_faithful_wrapper_differs_nowhere() -> None:
    for scenario in SCENARIOS:
        assert not catches(scenario, Faithful(Replica(scenario.cache, scenario.scheduler)))
