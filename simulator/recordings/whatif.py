"""What a recorded run would have been under other knobs, by the twin."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.trace import HeaderRecord
from pagetwin.simulator.costs.calibration import PROBE, WARM_UP, recorded_subject
from pagetwin.simulator.costs.profile import Profile
from pagetwin.simulator.recordings.reading import read_records
from pagetwin.simulator.recordings.rerun import Rerun, Seen, recorded, rerun
from pagetwin.simulator.recordings.runs import RecordedRun, read_runs

_SECTIONS = {"cache": CacheConfig, "scheduler": SchedulerConfig}
_SECTION_OF = {
    name: section for section, config in _SECTIONS.items() for name in config.__struct_fields__
}


@dataclass(frozen=True)
class WhatIf:
    """A run as it was, as the twin has it, and as the twin has it under other knobs."""

    label: str
    measured: tuple[Seen, ...]
    same: Rerun
    changed: Rerun


def parse_changes(texts: Sequence[str]) -> dict[str, str]:
    """Reads `knob=value`; ConfigError on anything else and on knobs that decide nothing here."""
    changes: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r} is not KNOB=VALUE, as in max_num_seqs=64")
        if name not in _SECTION_OF:
            near = difflib.get_close_matches(name, _SECTION_OF, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_SECTION_OF)}"
            raise ConfigError(f"unknown knob {name!r} in --set {text!r}; {hint}")
        changes[name] = value
    if not changes:
        raise ConfigError("nothing is to change; give --set KNOB=VALUE, as in max_num_seqs=64")
    return changes


def what_if(path: Path, profile: Profile, changes: Mapping[str, str]) -> Iterator[WhatIf]:
    """Each run of a history but warm-ups and calibration runs.

    Raises ConfigError or TraceError.
    """
    for run in read_runs(read_records(path)):
        if run.workload not in (WARM_UP, PROBE):
            profile.check(recorded_subject(run.header))
            yield _one(run, profile, changes)


def _one(run: RecordedRun, profile: Profile, changes: Mapping[str, str]) -> WhatIf:
    cache, scheduler = changed_knobs(run.header, changes)
    same = profile.cost_model(run.header.scheduler.max_num_seqs)
    other = profile.cost_model(scheduler.max_num_seqs)
    return WhatIf(
        label=run.label,
        measured=recorded(run),
        same=rerun(run, same),
        changed=rerun(run, other, cache=cache, scheduler=scheduler),
    )


def changed_knobs(
    header: HeaderRecord, changes: Mapping[str, str]
) -> tuple[CacheConfig, SchedulerConfig]:
    """A history's knobs with some of them changed. Raises ConfigError if they do not fit."""
    new: dict[str, Any] = {}
    for section, config in _SECTIONS.items():
        values = msgspec.to_builtins(getattr(header, section))
        values |= {n: _plain(v) for n, v in changes.items() if _SECTION_OF[n] == section}
        try:
            new[section] = msgspec.convert(values, config, strict=False)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, ConfigError):
                raise error.__cause__ from None
            raise ConfigError(f"--set: {error}; give a value of that type") from None
    return new["cache"], new["scheduler"]


def _plain(value: str) -> Any:
    """True and false as JSON has them; the rest as text, which the conversion reads."""
    return {"true": True, "false": False}.get(value.lower(), value)
