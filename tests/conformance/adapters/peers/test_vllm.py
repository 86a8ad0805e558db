"""vLLM in its own virtual environment: tokens, steps, and what it refuses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    AdapterError,
    SessionConfig,
    SessionRefused,
)
from pagetwin.conformance.adapters.vllm import make
from pagetwin.conformance.experiments.numerics import Numerics
from pagetwin.conformance.experiments.provenance import ProvenanceExperiment
from pagetwin.conformance.experiments.refinement import RefinementExperiment
from pagetwin.conformance.experiments.sampling_semantics import SamplingSemantics
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.config import CacheConfig


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, vllm_python: str) -> Iterator[Adapter]:
    made = make(str(checkpoint), {"python": vllm_python})
    yield made
    made.close()


@pytest.mark.peer
@pytest.mark.slow
def test_it_reads_every_slot_right_and_its_steps_refine_its_policy(adapter: Adapter) -> None:
    for experiment in (ProvenanceExperiment(), RefinementExperiment()):
        [found] = experiment.run(adapter, Budget(600, max_examples=1), seed=1)
        assert found.violation is None
        wanted = "further samples" if experiment.id == "refinement" else "prefix hits"
        assert found.goals[wanted] > 0


@pytest.mark.peer
@pytest.mark.slow
def test_its_numbers_and_what_its_parameters_mean_are_judged(adapter: Adapter) -> None:
    judged = {}
    for experiment in (Numerics(), SamplingSemantics()):
        for found in experiment.run(adapter, Budget(600, max_examples=1), seed=1):
            assert found.violation is None
            judged[found.property_id] = found.examples
        assert set(experiment.judges) <= set(judged)
    assert min(judged.values()) > 0


@pytest.mark.peer
@pytest.mark.slow
def test_blocks_that_its_attention_cannot_take_are_refused(adapter: Adapter) -> None:
    with pytest.raises(SessionRefused, match="no multiple of 32"):
        adapter.open(SessionConfig(cache=CacheConfig(num_blocks=9, block_size=16)))


def test_without_vllm_the_remedy_is_told(checkpoint: Path) -> None:
    with pytest.raises(AdapterError, match=r"install vllm .* in a virtual environment"):
        make(str(checkpoint), {})
    with pytest.raises(AdapterError, match=r"python='/no/such' is no interpreter"):
        make(str(checkpoint), {"python": "/no/such"})
