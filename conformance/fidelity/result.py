"""What `pagetwin validate` found, as plain data: decisions and times apart."""

import msgspec

from pagetwin.simulator.costs.profile import HeldOut, Source, Subject

SCHEMA = "pagetwin.fidelity/1"
AT_ONCE = "all at once"
"""The load of runs whose requests were all handed in together."""


class Decisions(msgspec.Struct, frozen=True, kw_only=True):
    """A history replayed on the twin, in the recorded order of events."""

    steps: int
    decisions: int
    """Entries of plans: sequences scheduled or admitted, preemptions, copies, swaps of a block."""
    difference: str | None
    """The first one, explained; None if there is none."""


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a run, measured and predicted."""

    name: str
    """throughput (output tokens a second), or ttft, tpot or e2e with _p50, _p95 or _p99 (s)."""
    measured: float
    predicted: float
    error: float
    """predicted / measured - 1."""
    low: float
    high: float
    """95 % interval of the error: requests drawn anew, measured and predicted together; for the
    throughput stretches of steps."""


class RunFidelity(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded run, run again by the twin with predicted times."""

    history: str
    label: str
    workload: str
    load: str
    """all at once; below, at or above saturation; or as the label has it."""
    was_fitted_to: bool
    """Whether the profile saw this workload in this history."""
    num_requests: int
    step_times: HeldOut
    """Predicted step by step, the recorded decisions given."""
    measures: tuple[Measure, ...]

    @property
    def worst(self) -> Measure:
        return max(self.measures, key=lambda measure: abs(measure.error))


class FidelityReport(msgspec.Struct, frozen=True, kw_only=True):
    """A profile judged by histories."""

    schema: str = SCHEMA
    profile: str
    """Its label."""
    left_one_out: bool = False
    """Whether each run was judged by a profile of the other workloads instead."""
    own_launches: bool = False
    """Whether launches were as long as in the run itself."""
    subject: Subject
    model: str
    histories: tuple[Source, ...]
    decisions: dict[str, Decisions]
    """By history."""
    runs: tuple[RunFidelity, ...]
    notes: tuple[str, ...] = ()


class WhatIfFidelity(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was recorded under other knobs, against what the twin made of one recorded under
    the first ones."""

    schema: str = "pagetwin.whatif-fidelity/1"
    profile: str
    """Its label."""
    subject: Subject
    model: str
    workload: str
    label: str
    """The runs', of which each history has one."""
    changes: dict[str, str]
    """Knobs of the recorded run that the prediction was not made from."""
    sources: tuple[Source, ...]
    """The history that was predicted from, and the one that was measured."""
    was_fitted_to: bool
    """Whether the profile saw this workload in one of them."""
    num_requests: int
    change: tuple[Measure, ...]
    """Measured under the first knobs, predicted under the others."""
    measures: tuple[Measure, ...]
    """Measured and predicted under the others."""


class MeasuredElsewhere(msgspec.Struct, frozen=True, kw_only=True):
    """Another engine's measured requests against the twin with uncalibrated times."""

    schema: str = "pagetwin.measured-elsewhere/1"
    name: str
    engine: str
    costs: str
    """The cost model's label."""
    model: str
    tensor_parallel: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    blocks_are_recorded: bool
    """By the engine that was measured; else they are estimated from the GPU's memory."""
    requests_sha256: str
    num_requests: int
    measures: tuple[Measure, ...]
