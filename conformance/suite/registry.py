"""Every experiment, in the order in which they run. A new one is a line here."""

from collections.abc import Callable

from pagetwin.conformance.experiments.provenance import ProvenanceExperiment
from pagetwin.conformance.experiments.scenarios import RandomScenarios
from pagetwin.conformance.experiments.serving import Serving
from pagetwin.conformance.suite.experiment import Experiment

EXPERIMENTS: tuple[Callable[[], Experiment], ...] = (
    Serving,
    RandomScenarios,
    ProvenanceExperiment,
)
"""Cheap and exact ones first: what they find explains what the others would."""


def experiments() -> list[Experiment]:
    """A fresh instance of each, in order."""
    return [make() for make in EXPERIMENTS]
