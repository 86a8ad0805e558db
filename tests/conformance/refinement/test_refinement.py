"""Our engine's steps refine paged memory; each way to break one is seen, by name."""

from collections.abc import Callable, Sequence
from random import Random

import msgspec
import pytest

from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.experiments import refinement
from pagetwin.conformance.experiments.refinement import RefinementExperiment
from pagetwin.conformance.refinement.checker import refine
from pagetwin.conformance.refinement.specification import ANY, VLLM_V1_FCFS
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.step import Preemption, StepPlan
from pagetwin.engine.trace import PlanRecord, Record, ResultRecord

GOALS = ("preemptions", "returns", "hits", "shared blocks")


def _evidence(spec: str, examples: int) -> list[Evidence]:
    adapter = make_adapter(spec)
    return list(RefinementExperiment().run(adapter, Budget(600, max_examples=examples), seed=3))


@pytest.mark.parametrize("spec", ["fingerprint:", "sim:"])
def test_engine_and_twin_refine_paged_memory(spec: str) -> None:
    found = _evidence(spec, 12)
    assert [one.violation for one in found] == [None] * 12
    for goal in GOALS:
        assert sum(one.goals.get(goal, 0) for one in found) > 10, goal


@pytest.fixture(scope="module")
def trace() -> Sequence[Record]:
    """A trace with preemptions, returns and hits."""
    adapter = make_adapter("fingerprint:")
    for example in range(20):
        records = refinement._session(adapter, adapter.describe(), Random(example))
        goals = refine(records, VLLM_V1_FCFS).goals
        if all(goals[goal] for goal in GOALS):
            return records
    raise AssertionError("no trace has all of it")


def _change(
    records: Sequence[Record], wanted: Callable[[PlanRecord], bool], **changes: object
) -> list[Record]:
    """The trace with the first plan that is wanted changed."""
    changed = list(records)
    for index, record in enumerate(changed):
        if isinstance(record, PlanRecord) and wanted(record):
            given = {name: make(record) for name, make in changes.items() if callable(make)}
            changed[index] = msgspec.structs.replace(record, **given)
            return changed
    raise AssertionError("no plan is like that")


def _messages(records: Sequence[Record]) -> list[str]:
    return [one.message for one in refine(records, VLLM_V1_FCFS).violations]


def _with_plan(change: Callable[[StepPlan], StepPlan]) -> Callable[[PlanRecord], StepPlan]:
    return lambda record: change(record.plan)


def test_the_trace_is_allowed_as_it_is(trace: Sequence[Record]) -> None:
    assert _messages(trace) == []
    assert refine(trace, ANY).goals == refine(trace, VLLM_V1_FCFS).goals


def test_a_hit_of_another_block_is_seen(trace: Sequence[Record]) -> None:
    def has_hit(record: PlanRecord) -> bool:
        return any(one.num_cached_tokens for one in record.plan.introduced)

    def other_block(record: PlanRecord) -> dict[str, tuple[int, ...]]:
        hit = next(one for one in record.plan.introduced if one.num_cached_tokens)
        table = record.block_tables[hit.seq_id]
        return record.block_tables | {hit.seq_id: (table[-1], *table[1:])}

    assert "a slot that is read holds something else" in _messages(
        _change(trace, has_hit, block_tables=other_block)
    )


def test_a_block_of_two_owners_is_seen(trace: Sequence[Record]) -> None:
    def two_write(record: PlanRecord) -> bool:
        return len(record.plan.scheduled) >= 2

    def same_tail(record: PlanRecord) -> dict[str, tuple[int, ...]]:
        first, second = (one.seq_id for one in record.plan.scheduled[:2])
        tables = record.block_tables
        return tables | {second: (*tables[second][:-1], tables[first][-1])}

    found = _messages(_change(trace, two_write, block_tables=same_tail))
    assert "a block is written that others hold" in found
    assert "free and held blocks do not add up" in found


def test_a_table_that_is_too_short_is_seen(trace: Sequence[Record]) -> None:
    def shorter(record: PlanRecord) -> dict[str, tuple[int, ...]]:
        return {seq_id: table[:-1] for seq_id, table in record.block_tables.items()}

    found = _messages(_change(trace, lambda record: True, block_tables=shorter))
    assert "a table has not the blocks of its tokens" in found


def test_a_gap_is_seen(trace: Sequence[Record]) -> None:
    def skip(plan: StepPlan) -> StepPlan:
        one = plan.scheduled[0]
        later = msgspec.structs.replace(one, num_computed_tokens=one.num_computed_tokens + 1)
        return msgspec.structs.replace(plan, scheduled=(later, *plan.scheduled[1:]))

    found = _messages(_change(trace, lambda record: record.plan.step == 5, plan=_with_plan(skip)))
    assert "the tokens computed leave a gap or overlap" in found


def test_a_preemption_out_of_order_is_seen(trace: Sequence[Record]) -> None:
    def preempts(record: PlanRecord) -> bool:
        return bool(record.plan.preempted)

    def first_admitted(plan: StepPlan) -> StepPlan:
        victim = plan.preempted[0]._replace(seq_id=plan.scheduled[0].seq_id)
        return msgspec.structs.replace(plan, preempted=(victim, *plan.preempted[1:]))

    found = _messages(_change(trace, preempts, plan=_with_plan(first_admitted)))
    assert "the victims are not the last admitted" in found
    assert "a step preempts what it schedules" in found


def test_a_preemption_without_need_is_seen(trace: Sequence[Record]) -> None:
    def roomy(record: PlanRecord) -> bool:
        return len(record.plan.scheduled) == 1 and record.counters.num_free_blocks > 8

    def lone_victim(plan: StepPlan) -> StepPlan:
        victims = (Preemption(plan.scheduled[0].seq_id, "recompute"),)
        return msgspec.structs.replace(plan, preempted=victims)

    def later(record: PlanRecord) -> bool:
        return roomy(record) and not record.plan.introduced

    found = _messages(_change(trace, later, plan=_with_plan(lone_victim)))
    assert "a step preempts though all would have fitted" in found


def test_overtaking_is_seen(trace: Sequence[Record]) -> None:
    def two(record: PlanRecord) -> bool:
        return len(record.plan.introduced) >= 2

    def swap(plan: StepPlan) -> StepPlan:
        return msgspec.structs.replace(plan, introduced=plan.introduced[::-1])

    assert "an admission overtakes" in _messages(_change(trace, two, plan=_with_plan(swap)))


def test_a_leaked_block_is_seen(trace: Sequence[Record]) -> None:
    changed = list(trace)
    last = changed[-1]
    assert isinstance(last, ResultRecord)
    fewer = msgspec.structs.replace(
        last.counters, num_free_blocks=last.counters.num_free_blocks - 1
    )
    changed[-1] = msgspec.structs.replace(last, counters=fewer)
    assert _messages(changed) == ["free and held blocks do not add up"]


def test_tokens_after_the_end_are_seen(trace: Sequence[Record]) -> None:
    changed = list(trace)
    ends = [i for i, one in enumerate(changed) if isinstance(one, ResultRecord) and one.finished]
    over = changed[ends[0]]
    later = changed[ends[0] + 2]
    assert isinstance(over, ResultRecord)
    assert isinstance(later, ResultRecord)
    sampled = later.sampled | {over.finished[0].seq_id: 7}
    changed[ends[0] + 2] = msgspec.structs.replace(later, sampled=sampled)
    assert "a sequence that had ended got a token" in _messages(changed)
