"""What a run of the suite says, as tables: for a terminal and for a page."""

from collections.abc import Sequence

from pagetwin.conformance.suite.evidence import PropertyResult, Status
from pagetwin.conformance.suite.result import ExitCode, SuiteResult
from pagetwin.reports.tables import Table

LONGEST_REASON = 88
LOCKSTEP = "twin.lockstep"
"""Its examples are the random scenarios, each of which all checkers judge, too."""
ORDER = (
    Status.FAIL,
    Status.ERROR,
    Status.VACUOUS,
    Status.UNDECIDED,
    Status.WAIVED,
    Status.PASS,
    Status.UNSUPPORTED,
)
"""Worst first; what was not judged stands last, and apart from what passed."""
ENDINGS = {
    ExitCode.CLEAN: "clean",
    ExitCode.VIOLATION: "a property is violated",
    ExitCode.USAGE: "the engine could not be tested to the end",
    ExitCode.NOT_ENOUGH_EVIDENCE: "not enough evidence",
    ExitCode.UNTRUSTWORTHY: "the harness or the adapter is not to be trusted",
}


def property_table(results: Sequence[PropertyResult]) -> Table:
    """One row for each property, worst first."""
    ordered = sorted(results, key=lambda result: ORDER.index(result.status))
    rows = [
        (
            result.status.value,
            result.property_id,
            f"{result.examples:,}" if result.examples else "",
            f"{result.num_violations:,}" if result.num_violations else "",
            _short(result.reason),
        )
        for result in ordered
    ]
    columns = ("status", "property", "examples", "violations", "why")
    return Table(columns, rows, num_left=len(columns))


def verdict(result: SuiteResult) -> str:
    """One line: the engine, the counts, and how it ends."""
    counts = result.counts
    parts = [f"{counts[status]} {status.value}" for status in ORDER if counts[status]]
    ending = ENDINGS[result.exit_code]
    if not result.complete:
        ending += f"; INCOMPLETE: {result.cut_short}"
    return (
        f"{result.spec} ({result.engine.name}), profile {result.profile}, seed {result.seed}, "
        f"{result.seconds:.1f} s: {', '.join(parts)}; {ending}"
    )


def scenario_rate(result: SuiteResult) -> str:
    """One line: random scenarios that every checker and the twin have judged, and how fast; empty
    where there were none."""
    for one in result.results:
        if one.property_id == LOCKSTEP and one.examples and one.seconds:
            return (
                f"{one.examples:,} random scenarios were judged by every checker and the twin in "
                f"{one.seconds:.1f} s: {60 * one.examples / one.seconds:,.0f} a minute"
            )
    return ""


def _short(reason: str) -> str:
    text = " ".join(reason.split()).replace("|", "/")
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."
