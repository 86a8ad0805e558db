"""Judges what a run would have been under other knobs by a recording that was made with them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pagetwin.conformance.fidelity.result import WhatIfFidelity
from pagetwin.conformance.fidelity.timing import compare
from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.costs.calibration import PROBE, WARM_UP, recorded_subject
from pagetwin.simulator.costs.profile import Profile, Source
from pagetwin.simulator.recordings.reading import identity, read_records
from pagetwin.simulator.recordings.rerun import recorded
from pagetwin.simulator.recordings.runs import RecordedRun, read_runs
from pagetwin.simulator.recordings.whatif import WhatIf, what_if


def judge_what_if(
    history: Path, against: Path, profile: Profile, changes: Mapping[str, str]
) -> list[WhatIfFidelity]:
    """One for each run of `against` whose label a run of the history has.

    Raises ConfigError if there is none, if the recordings are of different subjects, or if
    `against` was not made with those knobs; TraceError if one cannot be read.
    """
    predicted = {result.label: result for result in what_if(history, profile, changes)}
    sources = tuple(
        Source(name=path.name, sha256=identity(path).sha256, workloads={})
        for path in (history, against)
    )
    found = []
    for run in _runs(against):
        result = predicted.get(run.label)
        if result is None:
            continue
        profile.check(recorded_subject(run.header))
        _require_knobs(run, against, changes)
        found.append(_judged(run, result, profile, changes, sources))
    if not found:
        raise ConfigError(
            f"{against} holds no run that {history} holds, too (by its label, as in "
            f"chat/at-once/0); the latter has {', '.join(predicted) or 'none'}"
        )
    return found


def _judged(
    run: RecordedRun,
    result: WhatIf,
    profile: Profile,
    changes: Mapping[str, str],
    sources: tuple[Source, ...],
) -> WhatIfFidelity:
    """The run that was made with the other knobs, against what was predicted of it."""
    under_first = {one.request_id: one for one in result.measured}
    under_others = {one.request_id: one for one in recorded(run)}
    predicted = [
        one
        for one in result.changed.seen
        if one.request_id in under_first and one.request_id in under_others
    ]
    return WhatIfFidelity(
        profile=profile.label,
        subject=profile.subject,
        model=profile.model,
        workload=run.workload,
        label=run.label,
        changes=dict(changes),
        sources=sources,
        was_fitted_to=any(profile.was_fitted_to(one.sha256, run.workload) for one in sources),
        num_requests=len(predicted),
        change=compare([under_first[one.request_id] for one in predicted], predicted),
        measures=compare([under_others[one.request_id] for one in predicted], predicted),
    )


def _runs(path: Path) -> Iterator[RecordedRun]:
    for run in read_runs(read_records(path)):
        if run.workload not in (WARM_UP, PROBE):
            yield run


def _require_knobs(run: RecordedRun, path: Path, changes: Mapping[str, str]) -> None:
    for name, value in changes.items():
        section = run.header.cache if hasattr(run.header.cache, name) else run.header.scheduler
        was = str(getattr(section, name))
        if was.lower() != value.lower():
            raise ConfigError(
                f"{path} was recorded with {name}={was}, not {value}; give the knobs that it was "
                "recorded with"
            )
