"""Decides what a set of histories calibrates: one subject, its steps by workload, a profile."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.trace import HeaderRecord
from pagetwin.simulator.costs.fitting import (
    cross_validate,
    fit,
    held_out_error,
    measured_range,
)
from pagetwin.simulator.costs.floors import Floors
from pagetwin.simulator.costs.profile import (
    HeldOut,
    Profile,
    Source,
    Subject,
    roofline_floor,
    subject_of,
)
from pagetwin.simulator.costs.step_costs import CalibratedCosts
from pagetwin.simulator.recordings.reading import identity, read_records
from pagetwin.simulator.recordings.runs import RecordedRun, read_runs
from pagetwin.simulator.recordings.steps import StepTable

WARM_UP = "warm-up"
"""The label of runs that are there to be forgotten."""
PROBE = "probe"
"""The label of runs that are there to be fitted to; nothing is validated on them."""


@dataclass
class Collected:
    """The measured steps of some histories."""

    header: HeaderRecord
    passes: dict[tuple[str, str], list[StepTable]] = field(default_factory=dict)
    """By history, and by what was run in it several times (`_requests`)."""
    sources: list[Source] = field(default_factory=list)

    def by_workload(self) -> dict[str, StepTable]:
        """All that a fit may see: of several passes in a process not the first, in which memory is
        allocated and what is seen for the first time takes longer."""
        found: dict[str, list[StepTable]] = {}
        for (_, requests), passes in self.passes.items():
            found.setdefault(requests.partition("/")[0], []).extend(passes[1:] or passes)
        return {name: StepTable.joined(tables) for name, tables in found.items()}


def calibrate(paths: Sequence[Path], workloads: Sequence[str] = ()) -> Profile:
    """A profile fitted to histories of one engine, model and device.

    With `workloads` only to runs of those, and the others judge it; else each judges a fit to the
    rest. Raises ConfigError if the histories are of different subjects, say too little of where
    they come from, or hold too few steps; TraceError if one cannot be read.
    """
    collected = collect(paths)
    tables = collected.by_workload()
    unknown = [name for name in workloads if name not in tables]
    if unknown:
        raise ConfigError(
            f"no run of workload {', '.join(unknown)} in these histories; they hold "
            f"{', '.join(tables)}"
        )
    return profile_of(collected, only=workloads)


def profile_of(
    collected: Collected, *, only: Sequence[str] = (), without: str | None = None
) -> Profile:
    """Likewise, of steps that were collected; not fitted to the workload `without`."""
    header = collected.header
    subject = recorded_subject(header)
    floors = Floors.of(roofline_floor(header.model_config, subject))
    tables = collected.by_workload()
    fitted = {name: t for name, t in tables.items() if name != without and name in (only or tables)}
    everything = StepTable.joined(fitted.values())
    max_num_seqs = header.scheduler.max_num_seqs
    costs = fit(everything, floors)
    judged: dict[str, HeldOut] = {}
    if only:
        model = CalibratedCosts(costs, max_num_seqs=max_num_seqs)
        unseen = {name: table for name, table in tables.items() if name not in fitted}
        judged = {name: held_out_error(model, table) for name, table in unseen.items()}
    elif without is None:
        judged = cross_validate(tables, floors, always=(PROBE,), max_num_seqs=max_num_seqs)
    return Profile(
        subject=subject,
        model=Path(header.model or "").name,
        model_config=header.model_config,
        sources_sha256=header.versions.get("sources", ""),
        max_num_seqs=max_num_seqs,
        costs=costs,
        measured_up_to=measured_range(everything),
        fitted_to=tuple(collected.sources),
        not_fitted_to=tuple(name for name in tables if name not in fitted),
        cross_validation=judged,
    )


def collect(paths: Sequence[Path]) -> Collected:
    """The steps of all runs, warm-ups aside; raises like `calibrate`."""
    collected: Collected | None = None
    for path in paths:
        steps: dict[str, int] = {}
        for run in read_runs(read_records(path)):
            collected = collected or Collected(run.header)
            _require_one_subject(collected.header, run, path)
            if run.workload == WARM_UP:
                continue
            collected.passes.setdefault((str(path), _requests(run)), []).append(run.steps)
            steps[run.workload] = steps.get(run.workload, 0) + len(run.steps)
        source = Source(name=path.name, sha256=identity(path).sha256, workloads=steps)
        if collected is not None:
            collected.sources.append(source)
    if collected is None or not collected.passes:
        names = ", ".join(map(str, paths))
        raise ConfigError(f"no step to fit to in {names}: record whole workloads")
    return collected


def _requests(run: RecordedRun) -> str:
    """What passes have in common: the workload, however it arrives, or a calibration run's kind."""
    return run.label.rpartition("/")[0] if run.workload == PROBE else run.workload


def recorded_subject(header: HeaderRecord) -> Subject:
    """What a history was measured of. Raises ConfigError if its header does not say."""
    missing = [
        name
        for name, value in (
            ("model_config", header.model_config),
            ("dtype", header.dtype),
            ("device", header.device not in (None, "auto")),
        )
        if not value
    ]
    if missing:
        raise ConfigError(
            f"the history's header does not say {', '.join(missing)}, so nobody can tell for what "
            "its times hold; record it with 'pagetwin bench offline --record' of this version"
        )
    return subject_of(
        header.model_config,
        dtype=header.dtype,
        device=header.device or "",
        engine=_version(header.versions.get("pagetwin", "")),
        knobs={**header.knobs, "async_scheduling": _yes_or_no(header.scheduler.async_scheduling)},
    )


def _require_one_subject(header: HeaderRecord, run: RecordedRun, path: Path) -> None:
    differences = recorded_subject(run.header).differences(recorded_subject(header))
    ours, theirs = (one.versions.get("sources", "") for one in (run.header, header))
    if ours != theirs:
        differences.append(f"engine sources {ours[:12]}, not {theirs[:12]}")
    if differences:
        raise ConfigError(
            f"{path} was measured of something else than the histories before it "
            f"({'; '.join(differences)}); calibrate each by itself"
        )


def _version(text: str) -> str:
    """A version; nothing for the words that stand where there is none."""
    return text if text[:1].isdigit() else ""


def _yes_or_no(value: bool) -> str:
    return str(value).lower()
