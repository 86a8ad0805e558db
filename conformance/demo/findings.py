"""What the judges say, in the words of the page: the twin's and the checkers' findings."""

from collections.abc import Sequence
from typing import NamedTuple

from pagetwin.conformance.comparison import LockstepReport
from pagetwin.conformance.demo.result import Check, Difference
from pagetwin.conformance.properties import CATALOGUE, Violation

MAX_SHOWN = 20
_MAX_TEXT = 300


class TwinFindings(NamedTuple):
    """The lockstep report, sorted by what was compared."""

    checks: tuple[Check, ...]
    differences: tuple[Difference, ...]
    decision_differences: int
    counter_differences: int


def twin_findings(report: LockstepReport) -> TwinFindings:
    """A replay ends at its first difference, so at most one kind has any."""
    found = report.difference
    what = found.what if found is not None else ""
    counters = int(what.startswith("counters"))
    updates = int(what.startswith("update"))
    decisions = report.decision_differences
    if found is not None and not (counters or updates or report.block_table_differences):
        decisions = max(1, decisions)
    checks = (
        Check(
            name="Decisions: sequences and tokens of a step, preemptions, copies, swaps",
            compared=report.decisions_compared,
            differences=decisions,
        ),
        Check(
            name="Block tables: the same block ids at the same places",
            compared=report.block_tables_compared,
            differences=report.block_table_differences,
        ),
        Check(
            name="Endings and forks that a result brings about",
            compared=report.updates_compared,
            differences=updates,
        ),
        Check(
            name="Counters after every event: queues, free blocks, hits, evictions, copies",
            compared=report.counters_compared,
            differences=counters,
        ),
    )
    fields = found.fields if found is not None else ()
    differences = tuple(
        Difference(
            what=f"{what} ({field.path})",
            where=f"{found.where if found is not None else ''} of the history",
            engine=_short(field.left),
            other=_short(field.right),
            other_side="twin",
        )
        for field in fields[:MAX_SHOWN]
    )
    return TwinFindings(checks, differences, decisions + updates, counters)


def violation_differences(violations: Sequence[Violation]) -> tuple[Difference, ...]:
    """Broken invariants, each with what it says and what the history shows."""
    return tuple(
        Difference(
            what=f"Invariant {one.property_id}",
            where=f"step {one.step}",
            engine=_short(f"{one.message}: " + ", ".join(f"{k}={v}" for k, v in one.witness)),
            other=CATALOGUE[one.property_id].statement,
            other_side="invariant",
        )
        for one in violations[:MAX_SHOWN]
    )


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
