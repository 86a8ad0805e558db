"""Replays a history's decisions on the twin, however the history was kept."""

from collections.abc import Iterator
from pathlib import Path

from pagetwin.conformance.fidelity.result import Decisions
from pagetwin.conformance.lockstep import replay_history
from pagetwin.engine.errors import TraceError
from pagetwin.engine.step import StepPlan
from pagetwin.engine.trace import HeaderRecord, PlanRecord, Record
from pagetwin.simulator.recordings.reading import is_compact, read_records
from pagetwin.simulator.replica import Replica


def judge_decisions(path: Path) -> Decisions:
    """Every plan, update and book of the history against the twin's.

    A compact history is judged while it is expanded, by the digests of what the engine decided.
    Raises TraceError if the file cannot be read.
    """
    return _expanded(path) if is_compact(path) else _replayed(path)


def _replayed(path: Path) -> Decisions:
    records = read_records(path)
    header = next(records, None)
    if not isinstance(header, HeaderRecord):
        raise TraceError(f"{path} has no header; it is empty or damaged")
    report = replay_history(records, Replica(header.cache, header.scheduler))
    return Decisions(
        steps=report.steps,
        decisions=report.decisions_compared,
        difference=None if report.equal else report.explain(),
    )


def _expanded(path: Path) -> Decisions:
    steps = decisions = 0
    difference = None
    try:
        for plan in _plans(read_records(path)):
            steps += 1
            decisions += num_decisions(plan)
    except TraceError as error:
        difference = str(error)
    return Decisions(steps=steps, decisions=decisions, difference=difference)


def _plans(records: Iterator[Record]) -> Iterator[StepPlan]:
    return (record.plan for record in records if isinstance(record, PlanRecord))


def num_decisions(plan: StepPlan) -> int:
    """As conformance/comparison.py counts them."""
    lists = (
        plan.scheduled,
        plan.introduced,
        plan.preempted,
        plan.copies,
        plan.swap_ins,
        plan.swap_outs,
    )
    return sum(map(len, lists))
