"""Calibrated costs: what was fitted, to what, how well it predicts, and for whom it holds.

A profile is a JSON file. It holds for one model, dtype, GPU and engine version; `check` refuses
another, because times of one say nothing of the other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.cost_model import StepComposition
from pagetwin.simulator.costs.basis import Rise
from pagetwin.simulator.costs.datasheets import gpu_named
from pagetwin.simulator.costs.graph_sizes import graph_sizes
from pagetwin.simulator.costs.model_shape import config_digest, shape_of
from pagetwin.simulator.costs.roofline import PERFECT, Roofline

SCHEMA = "pagetwin.profile/1"


class GraphCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of decode steps that a CUDA graph runs."""

    rise: Rise
    """By sequences, padded to a graph's size."""
    per_context_s: float
    per_mean_context_s: float


class EagerCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of all other steps."""

    rise: Rise
    """By tokens."""
    per_pair_s: float
    per_context_s: float
    per_chunk_s: float
    per_sample_s: float
    launch_s: float = 0.0
    """What the host needs to launch a step, the least that one takes."""


class StepCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that was fitted; None for a kind of step that never happened."""

    graph: GraphCosts | None
    eager: EagerCosts | None


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
    """Workloads in them whose sequences share prefixes; validated on, all the same."""
    cross_validation: dict[str, HeldOut]
    """By workload that was left out."""

    @property
    def label(self) -> str:
        """What results made with it must carry."""
        errors = {name: abs(one.total_error) for name, one in self.cross_validation.items()}
        sharing = [errors[name] for name in self.not_fitted_to if name in errors]
        others = [error for name, error in errors.items() if name not in self.not_fitted_to]
        tested = "not validated"
        if others:
            tested = f"step times of workloads left out were within {max(others):.1%}"
        if sharing:
            tested += f", with shared prefixes within {max(sharing):.0%}"
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


class CalibratedCosts:
    """Fitted costs as a `CostModel`: whole ticks, decode steps exactly on their lines.

    With a floor, no step is faster than its roofline.
    """

    def __init__(
        self,
        costs: StepCosts,
        *,
        max_num_seqs: int,
        floor: Roofline | None = None,
        label: str = "",
    ) -> None:
        self.label = label
        self._graph = costs.graph
        # Where one kind of step was never seen, the other's costs must do.
        self._eager = costs.eager or _without_graphs(costs.graph)
        self.floor = floor
        self._sizes = graph_sizes(max_num_seqs) if costs.graph else ()
        self._lines: dict[int, tuple[int, int]] = {}

    def ticks(self, parts: StepComposition) -> int:
        only_decodes = not parts.num_prefill_tokens
        if only_decodes and parts.num_samples == parts.num_decode_sequences:
            base, slope = self.decode_line(parts.num_decode_sequences)
            return base + slope * parts.num_context_tokens
        ticks = self._eager_ticks(parts)
        if parts.num_decode_sequences:
            # More work never takes less: not less than the decodes alone, which a graph may run.
            base, slope = self.decode_line(parts.num_decode_sequences)
            ticks = max(ticks, base + slope * parts.num_context_tokens)
        return ticks if self.floor is None else max(ticks, self.floor.ticks(parts))

    def decode_line(self, num_sequences: int) -> tuple[int, int]:
        if num_sequences not in self._lines:
            self._lines[num_sequences] = self._line(num_sequences)
        return self._lines[num_sequences]

    def _line(self, count: int) -> tuple[int, int]:
        size = next((size for size in self._sizes if size >= count), None)
        if self._graph is not None and size is not None:
            base = to_ticks(self._graph.rise.at(size))
            mean_s = self._graph.per_mean_context_s / max(count, 1)
            slope = to_ticks(self._graph.per_context_s + mean_s)
        else:
            parts = StepComposition(num_decode_sequences=count, num_samples=count)
            base, slope = self._eager_ticks(parts), to_ticks(self._eager.per_context_s)
            if self._sizes:
                # More than any graph holds: not less than what the largest one takes.
                least_base, least_slope = self.decode_line(self._sizes[-1])
                base, slope = max(base, least_base), max(slope, least_slope)
        if self.floor is not None:
            least_base, least_slope = self.floor.decode_line(count)
            base, slope = max(base, least_base), max(slope, least_slope)
        return max(base, 1), slope

    def _eager_ticks(self, parts: StepComposition) -> int:
        costs = self._eager
        seconds = costs.rise.at(parts.num_prefill_tokens + parts.num_decode_sequences)
        seconds += costs.per_pair_s * parts.prefill_area
        seconds += costs.per_chunk_s * parts.num_prefill_sequences
        seconds += costs.per_sample_s * parts.num_samples
        seconds = max(seconds, costs.launch_s)
        return max(1, to_ticks(seconds)) + to_ticks(costs.per_context_s) * parts.num_context_tokens


def _without_graphs(graph: GraphCosts | None) -> EagerCosts:
    assert graph is not None, "a fit has steps of one kind at least"
    return EagerCosts(
        rise=graph.rise,
        per_pair_s=0.0,
        per_context_s=graph.per_context_s,
        per_chunk_s=0.0,
        per_sample_s=0.0,
    )
