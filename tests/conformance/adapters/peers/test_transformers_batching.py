"""transformers' continuous batching, stepped by hand: tokens, steps, refusals, and faults."""

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers.generation.continuous_batching.cache_allocators import (
    FullAttentionCacheAllocator,
)

from pagetwin.conformance.adapters.protocol import (
    AdapterError,
    EngineDied,
    RecordingSession,
    SessionConfig,
    SessionRefused,
)
from pagetwin.conformance.adapters.transformers_batching import TransformersAdapter, make
from pagetwin.conformance.experiments.provenance import ProvenanceExperiment
from pagetwin.conformance.experiments.refinement import RefinementExperiment
from pagetwin.conformance.observation import CachedTokens, Cancelled, Refused, output_tokens
from pagetwin.conformance.suite.experiment import Budget, Experiment
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

pytestmark = pytest.mark.peer

ROOMY = SessionConfig(
    cache=CacheConfig(num_blocks=33, block_size=8),
    scheduler=SchedulerConfig(max_model_len=128, max_num_seqs=8, max_num_batched_tokens=32),
)


def _request(request_id: str, *, first: int = 100, length: int = 20, **knobs: Any) -> Request:
    given = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | knobs
    prompt = tuple(range(first, first + length))
    return Request(
        request_id=request_id, prompt_token_ids=prompt, sampling_params=SamplingParams(**given)
    )


@pytest.fixture(scope="module")
def adapter(checkpoint: Path) -> TransformersAdapter:
    return make(str(checkpoint), {})


def _examples(adapter: TransformersAdapter, experiment: Experiment, count: int) -> Counter[str]:
    goals: Counter[str] = Counter()
    for evidence in experiment.run(adapter, Budget(600, max_examples=count), seed=1):
        assert evidence.violation is None
        assert not evidence.undecided
        goals.update(evidence.goals)
    return goals


def test_it_reads_every_slot_right(adapter: TransformersAdapter) -> None:
    goals = _examples(adapter, ProvenanceExperiment(), 2)
    assert min(goals["prefix hits"], goals["preemptions"]) > 0


def test_its_steps_refine_paged_memory(adapter: TransformersAdapter) -> None:
    goals = _examples(adapter, RefinementExperiment(), 2)
    assert min(goals[one] for one in ("preemptions", "returns", "hits", "shared blocks")) > 0


def test_a_prefix_look_up_that_lies_is_caught(
    adapter: TransformersAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(0)
    match = FullAttentionCacheAllocator.match_prefix_blocks
    lies = 0

    def lie(self: Any, prompt: list[int]) -> list[int]:
        nonlocal lies
        blocks = list(match(self, prompt))
        others = sorted(set(self.ledger.block_to_hash) - set(blocks))
        if blocks and others and random.random() < 0.8:
            lies += 1
            blocks[random.randrange(len(blocks))] = random.choice(others)
        return blocks

    monkeypatch.setattr(FullAttentionCacheAllocator, "match_prefix_blocks", lie)
    messages = []
    for experiment in (ProvenanceExperiment(), RefinementExperiment()):
        for evidence in experiment.run(adapter, Budget(600, max_examples=3), seed=1):
            if evidence.violation is not None:
                messages.append(evidence.violation.message)
    assert lies > 0
    assert "a slot that is read holds something else" in messages


def test_requests_end_as_they_asked(adapter: TransformersAdapter) -> None:
    session = adapter.open(ROOMY)
    assert isinstance(session, RecordingSession)
    session.submit(_request("whole"))
    session.submit(_request("stops", first=200, stop_token_ids=(216,)))
    session.submit(_request("patient", first=300), cancel_after=3)
    session.submit(_request("gone", first=400), cancel_after=0)
    session.submit(_request("again"))
    session.run(60)
    outputs = {
        request_id: one[0] for request_id, one in output_tokens(session.observations()).items()
    }
    # Five slots back from the last of twenty tokens, and after the sixth, its own output.
    whole = [114, 115, 116, 117, 118, 119, 114, 115]
    assert outputs == {
        "whole": whole,
        "stops": [214, 215, 216],
        "patient": [314, 315, 316],
        "again": whole,
    }
    assert sum(isinstance(one, Cancelled) for one in session.observations()) == 2
    session.submit(_request("hit"))
    session.run(60)
    cached = [one for one in session.observations() if isinstance(one, CachedTokens)]
    assert cached[-1].count == 16
    session.close()


def test_what_it_cannot_do_is_refused(adapter: TransformersAdapter) -> None:
    session = adapter.open(ROOMY)
    session.submit(_request("hot", temperature=1.0))
    session.submit(_request("long", length=125))
    refused = {
        one.request_id: one.error for one in session.observations() if isinstance(one, Refused)
    }
    assert "sampling parameters belong to the engine" in refused["hot"]
    assert "max_model_len=128" in refused["long"]
    with pytest.raises(SessionRefused, match="no equal of preemption_mode, policy"):
        adapter.open(
            SessionConfig(
                scheduler=SchedulerConfig(
                    max_model_len=64,
                    max_num_seqs=8,
                    policy="priority",
                    preemption_mode="swap",
                )
            )
        )


def test_a_pool_without_room_for_one_request_ends_the_engine(adapter: TransformersAdapter) -> None:
    small = SessionConfig(cache=CacheConfig(num_blocks=3, block_size=8), scheduler=ROOMY.scheduler)
    session = adapter.open(small)
    session.submit(_request("large", length=40))
    with pytest.raises(EngineDied, match="No requests can be scheduled"):
        session.run(60)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"names no model folder"):
        make(str(tmp_path), {})
