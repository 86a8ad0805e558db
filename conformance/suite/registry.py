"""Every experiment, in the order in which they run. A new one is a line here."""

from collections.abc import Callable

from pagetwin.conformance.experiments.components import Components
from pagetwin.conformance.experiments.ends import Ends
from pagetwin.conformance.experiments.families import Families
from pagetwin.conformance.experiments.faults import Faults
from pagetwin.conformance.experiments.history_independence import HistoryIndependence
from pagetwin.conformance.experiments.kv_memory import KVMemory
from pagetwin.conformance.experiments.neighbours import Neighbours
from pagetwin.conformance.experiments.numerics import Numerics
from pagetwin.conformance.experiments.one_distribution import OneDistribution
from pagetwin.conformance.experiments.paged_attention import PagedAttention
from pagetwin.conformance.experiments.provenance import ProvenanceExperiment
from pagetwin.conformance.experiments.refinement import RefinementExperiment
from pagetwin.conformance.experiments.sampling import Sampling
from pagetwin.conformance.experiments.sampling_semantics import SamplingSemantics
from pagetwin.conformance.experiments.scenarios import RandomScenarios
from pagetwin.conformance.experiments.serving import Serving
from pagetwin.conformance.experiments.stops import Stops
from pagetwin.conformance.experiments.streams import Streams
from pagetwin.conformance.suite.experiment import Experiment

EXPERIMENTS: tuple[Callable[[], Experiment], ...] = (
    Serving,
    RandomScenarios,
    HistoryIndependence,
    Neighbours,
    Ends,
    Stops,
    Streams,
    Faults,
    KVMemory,
    ProvenanceExperiment,
    RefinementExperiment,
    Components,
    PagedAttention,
    Families,
    Numerics,
    SamplingSemantics,
    OneDistribution,
    Sampling,
)
"""Cheap and exact ones first: what they find explains what the others would."""


def experiments() -> list[Experiment]:
    """A fresh instance of each, in order."""
    return [make() for make in EXPERIMENTS]
