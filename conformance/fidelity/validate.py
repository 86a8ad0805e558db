"""Judges a profile by histories: replays decisions, then runs the requests with predicted times."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import msgspec

from pagetwin.conformance.fidelity.decisions import judge_decisions
from pagetwin.conformance.fidelity.result import (
    AT_ONCE,
    Decisions,
    FidelityReport,
    RunFidelity,
)
from pagetwin.conformance.fidelity.timing import compare
from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.costs.calibration import (
    PROBE,
    WARM_UP,
    collect,
    profile_of,
    recorded_subject,
)
from pagetwin.simulator.costs.fitting import error_of, predicted_seconds, with_launches_of
from pagetwin.simulator.costs.profile import Profile, Source
from pagetwin.simulator.recordings.reading import identity, read_records
from pagetwin.simulator.recordings.rerun import recorded, rerun
from pagetwin.simulator.recordings.runs import RecordedRun, read_runs

_NEAR = 0.1
"""How far from 1 a load may be and count as `at` saturation."""


class Progress(Protocol):
    """Told what is going on."""

    def begin(self, phase: str, total: int | None) -> None: ...

    def advance_to(self, done: int) -> None: ...


def validate(
    profile: Profile,
    paths: Sequence[Path],
    progress: Progress,
    *,
    leave_one_out: bool = False,
    own_launches: bool = False,
) -> FidelityReport:
    """Decisions and times of each history's runs; not the times of warm-ups and calibration runs.

    With `leave_one_out` a run is not judged by the profile, which only says of what it must be,
    but by one fitted to the histories' other workloads. With `own_launches` steps without a graph
    are launched as fast as they were in the run: what is left is not for want of knowing that.

    Raises ConfigError if a history is of another subject than the profile or holds no run,
    TraceError if it cannot be read.
    """
    decisions: dict[str, Decisions] = {}
    sources, runs, notes = [], [], []
    profile_for = _others(profile, paths) if leave_one_out else lambda workload: profile
    for path in paths:
        progress.begin(f"{path.name}: times", None)
        sha256, steps = identity(path).sha256, dict[str, int]()
        for run in read_runs(read_records(path)):
            profile.check(recorded_subject(run.header))
            if run.workload in (WARM_UP, PROBE):
                continue
            steps[run.workload] = steps.get(run.workload, 0) + len(run.steps)
            chosen = profile_for(run.workload)
            if own_launches:
                costs = with_launches_of(chosen.costs, run.steps)
                chosen = msgspec.structs.replace(chosen, costs=costs)
            runs.append(_judged(chosen, path.name, sha256, run))
            notes += _notes(profile, path.name, run)
        sources.append(Source(name=path.name, sha256=sha256, workloads=steps))
        progress.begin(f"{path.name}: decisions", None)
        decisions[path.name] = judge_decisions(path)
    if not runs:
        raise ConfigError(f"no run to judge in {', '.join(map(str, paths))}")
    return FidelityReport(
        profile=profile.label,
        left_one_out=leave_one_out,
        own_launches=own_launches,
        subject=profile.subject,
        model=profile.model,
        histories=tuple(sources),
        decisions=decisions,
        runs=tuple(runs),
        notes=tuple(dict.fromkeys(notes)),
    )


def _others(profile: Profile, paths: Sequence[Path]) -> Callable[[str], Profile]:
    """By workload, a profile fitted to the others."""
    collected = collect(paths)
    profile.check(recorded_subject(collected.header))
    return cache(lambda workload: profile_of(collected, without=workload))


def _judged(profile: Profile, name: str, sha256: str, run: RecordedRun) -> RunFidelity:
    costs = profile.cost_model(run.header.scheduler.max_num_seqs)
    measured = recorded(run)
    again = {one.request_id: one for one in rerun(run, costs).seen}
    both = [one for one in measured if one.request_id in again]
    predicted = predicted_seconds(costs, run.steps)
    return RunFidelity(
        history=name,
        label=run.label,
        workload=run.workload,
        load=load_of(run.label),
        was_fitted_to=profile.was_fitted_to(sha256, run.workload),
        num_requests=len(both),
        step_times=error_of(predicted, run.steps.seconds),
        measures=compare(
            both,
            [again[one.request_id] for one in both],
            (run.steps.seconds, predicted),
        ),
    )


def load_of(label: str) -> str:
    """Where a run stands to saturation, as its label tells."""
    arrivals = label.partition("/")[2].rpartition("/")[0] or label
    found = re.fullmatch(r"poisson:(\d+)%", arrivals)
    if found is None:
        return AT_ONCE if arrivals == "at-once" else arrivals
    share = int(found[1]) / 100
    if abs(share - 1) <= _NEAR:
        return f"at ({share:.0%})"
    return f"{'below' if share < 1 else 'above'} ({share:.0%})"


def _notes(profile: Profile, name: str, run: RecordedRun) -> list[str]:
    sources = run.header.versions.get("sources", "")
    if sources == profile.sources_sha256:
        return []
    return [
        f"{name} was recorded with engine sources {sources[:12]}, the profile is of "
        f"{profile.sources_sha256[:12]}: the same version, but not the same code"
    ]
