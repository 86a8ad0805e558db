"""Calibrated costs: what was fitted, to what, how well it predicts, and for whom it holds.

A profile is a JSON file. It holds for one model, dtype, GPU and engine version; `check` refuses
another, because times of one say nothing of the other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.costs.datasheets import gpu_named
from pagetwin.simulator.costs.model_shape import config_digest, shape_of
from pagetwin.simulator.costs.roofline import PERFECT, Roofline
from pagetwin.simulator.costs.step_costs import CalibratedCosts, StepCosts

SCHEMA = "pagetwin.profile/2"


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """Steps that a fit did not see: predicted against measured time, as shares of the measured."""

    steps: int
    measured_s: float
    total_error: float
    mean_absolute_error: float


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A history that was fitted to."""

    name: str
    sha256: str
    workloads: dict[str, int]
    """Steps of each."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What times were measured of. Two subjects must be equal for times of one to hold."""

    model_sha256: str
    """Of its config.json."""
    dtype: str
    device: str
    engine: str
    """Its version; empty if it was run from its sources."""
    knobs: dict[str, str] = {}

    def differences(self, other: "Subject") -> list[str]:
        """`field: ours, theirs` for each field that differs."""
        names = list(self.__struct_fields__)
        if not (self.engine and other.engine):
            names.remove("engine")  # One was run from its sources, and has no version.
        return [
            f"{name} {getattr(self, name)!r}, not {getattr(other, name)!r}"
            for name in names
            if getattr(self, name) != getattr(other, name)
        ]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fitted cost model and its pedigree."""

    schema: str = SCHEMA
    subject: Subject
    model: str
    """Its name, for people."""
    model_config: dict[str, Any]
    sources_sha256: str
    """Of the engine's code that was measured."""
    max_num_seqs: int
    costs: StepCosts
    measured_up_to: dict[str, int]
    fitted_to: tuple[Source, ...]
    not_fitted_to: tuple[str, ...] = ()
    """Workloads in them that were left out, to be validated on."""
    cross_validation: dict[str, HeldOut]
    """By workload that was left out: of this fit, or of one to the others."""

    @property
    def label(self) -> str:
        """What results made with it must carry."""
        errors = [abs(one.total_error) for one in self.cross_validation.values()]
        tested = "not validated"
        if errors:
            tested = f"step times of workloads left out were within {max(errors):.1%}"
        return f"calibrated: {self.model} on {self.subject.device}; {tested}"

    def check(self, subject: Subject) -> None:
        """Raises ConfigError, with what differs, unless the profile is of that subject."""
        differences = self.subject.differences(subject)
        if differences:
            raise ConfigError(
                f"the profile is of another engine, model or device ({'; '.join(differences)}), "
                "and its times say nothing of this one; calibrate on a history of this one, or "
                "leave the profile out to get uncalibrated times"
            )

    def was_fitted_to(self, history_sha256: str, workload: str) -> bool:
        """Whether steps of that workload in that history were seen by the fit."""
        return workload not in self.not_fitted_to and any(
            source.sha256 == history_sha256 and workload in source.workloads
            for source in self.fitted_to
        )

    def cost_model(self, max_num_seqs: int | None = None) -> "CalibratedCosts":
        """For an engine with that many sequences (its CUDA graphs depend on it)."""
        return CalibratedCosts(
            self.costs,
            max_num_seqs=max_num_seqs or self.max_num_seqs,
            floor=roofline_floor(self.model_config, self.subject),
            label=self.label,
        )


def roofline_floor(config: Mapping[str, Any], subject: Subject) -> Roofline | None:
    """What no step can be under; None where the device has no datasheet here."""
    try:
        gpu = gpu_named(subject.device)
    except ConfigError:
        return None
    return Roofline(shape=shape_of(config), gpu=gpu, dtype=subject.dtype, efficiency=PERFECT)


def read_profile(path: Path) -> Profile:
    """Raises ConfigError, or OSError, if the file is no profile of this version."""
    try:
        document = msgspec.json.decode(path.read_bytes())
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise ConfigError(
                f"{path}: schema {schema!r}, this version reads {SCHEMA!r}; make the profile again "
                "with 'pagetwin calibrate'"
            )
        return msgspec.convert(document, Profile)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"{path} is no profile ({error}); make one with 'pagetwin calibrate'"
        ) from None


def subject_of(
    config: Mapping[str, Any],
    *,
    dtype: str,
    device: str,
    engine: str,
    knobs: Mapping[str, str] | None = None,
) -> Subject:
    return Subject(
        model_sha256=config_digest(config),
        dtype=dtype,
        device=device,
        engine=engine,
        knobs=dict(knobs or {}),
    )
