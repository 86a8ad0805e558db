"""What `pagetwin verify explore` does once its arguments are understood."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pagetwin.commands.progress import BarProgress, NoProgress, terminal_progress
from pagetwin.commands.verify_run import quiet_engine
from pagetwin.commands.writing import as_json_document
from pagetwin.conformance.exploration.explorer import explore
from pagetwin.conformance.exploration.result import (
    ExplorationResult,
    Finding,
    ScopeResult,
    result_here,
    save_exploration,
)
from pagetwin.conformance.exploration.scope import Scope
from pagetwin.conformance.exploration.scopes import Size, scopes
from pagetwin.conformance.scenario import save_scenario
from pagetwin.engine.errors import ConfigError
from pagetwin.reports.staging import staged
from pagetwin.reports.tables import Table


def run_exploration(
    size: Size, names: Sequence[str], *, budget_s: float, out: Path | None, as_json: bool
) -> int:
    """Explores the scopes of that size, or those named; shows and writes what is found.

    What is known is written after every scope, so that a run that is stopped keeps what it had.
    Returns 0 if all states were seen and nothing is wrong, 1 on a finding, 3 if time ran out.
    Raises ConfigError for an unknown name, NotADirectoryError if `out` is a file.
    """
    chosen = _chosen(size, names)
    if out is not None and out.exists() and not out.is_dir():
        raise NotADirectoryError(20, "is a file; name a folder", str(out))
    deadline = time.monotonic() + budget_s
    result = result_here([])
    with quiet_engine(), terminal_progress() as bars:
        for scope in chosen:
            explored = _explore(scope, deadline, bars)
            result = msgspec.structs.replace(result, scopes=(*result.scopes, explored))
            if out is not None:
                _write(result, out)
    print(as_json_document(result).decode() if as_json else _told(result, out), end="")
    return 1 if not result.holds else 0 if result.complete else 3


def _chosen(size: Size, names: Sequence[str]) -> list[Scope]:
    if not names:
        return scopes(size)
    known = {scope.name: scope for scope in [*scopes("quick"), *scopes("full")]}
    for name in names:
        if name not in known:
            raise ConfigError(f"--scope {name} is not known; the scopes are {', '.join(known)}")
    return [known[name] for name in names]


def _explore(scope: Scope, deadline: float, bars: BarProgress | NoProgress) -> ScopeResult:
    bars.begin(scope.name, scope.max_steps)
    return explore(
        scope,
        seconds=deadline - time.monotonic(),
        progress=lambda steps, states, transitions: bars.advance_to(steps),
    )


def _told(result: ExplorationResult, out: Path | None) -> str:
    rows = [
        (one.name, _status(one), f"{one.states:,}", f"{one.num_transitions:,}", f"{one.seconds}")
        for one in result.scopes
    ]
    table = Table(("scope", "", "states", "transitions", "seconds"), rows, num_left=2)
    lines = [table.text(), ""]
    for one in result.scopes:
        if one.finding is not None:
            lines += [f"{one.name}: {one.finding.message}", *_steps(one.finding)]
    word = "all sound" if result.holds and result.complete else "not all are known to be sound"
    lines.append(f"{result.states:,} states, {result.transitions:,} transitions: {word}")
    if out is not None:
        lines.append(f"The results are in {out}")
    return "\n".join(lines) + "\n"


def _status(one: ScopeResult) -> str:
    if one.finding is not None:
        return f"broken: {one.finding.property_id}"
    return "all sound" if one.complete else "time ran out"


def _steps(finding: Finding) -> list[str]:
    return [f"  {number}. {action}" for number, action in enumerate(finding.path, start=1)]


def _write(result: ExplorationResult, out: Path) -> None:
    """exploration.json, and for each finding the scenario that replays it."""
    with staged(out) as folder:
        save_exploration(result, folder / "exploration.json")
        for one in result.scopes:
            if one.finding is not None:
                save_scenario(one.finding.scenario, folder / f"{one.name}.scenario.json")
