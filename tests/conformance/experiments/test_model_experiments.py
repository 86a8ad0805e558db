"""Our engine with a small random model passes; with one thing wrong in it, its property fails."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.experiments import numerics, sampling
from pagetwin.conformance.experiments.ends import Ends
from pagetwin.conformance.experiments.history_independence import HistoryIndependence
from pagetwin.conformance.experiments.neighbours import Neighbours
from pagetwin.conformance.experiments.numerics import Numerics
from pagetwin.conformance.experiments.one_distribution import OneDistribution
from pagetwin.conformance.experiments.paged_attention import PagedAttention
from pagetwin.conformance.experiments.sampling import Sampling
from pagetwin.conformance.experiments.sampling_semantics import SamplingSemantics
from pagetwin.conformance.experiments.stops import Stops
from pagetwin.conformance.experiments.streams import Streams
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Experiment
from pagetwin.engine import logits as engine_logits
from pagetwin.engine import sampler as engine_sampler
from pagetwin.engine.attention.torch_backend import TorchBackend
from pagetwin.engine.logprobs import report_logprobs
from pagetwin.engine.noise import Draw, draw_for

EvidenceOf = Callable[..., list[Evidence]]


@pytest.fixture(scope="module")
def engine(one_thread: None) -> Iterator[Adapter]:
    adapter = make_adapter("pagetwin:random?block_size=8")
    yield adapter
    adapter.close()


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for every exact judge, and for faults that are not subtle."""
    monkeypatch.setattr(sampling, "NUM_REQUESTS", 24)
    monkeypatch.setattr(sampling, "NUM_TOKENS", 24)
    monkeypatch.setattr(numerics, "LENGTHS", (1, 17, 60))
    monkeypatch.setattr(numerics, "NUM_TOKENS", 16)


def broken(pieces: list[Evidence]) -> set[str]:
    return {piece.property_id for piece in pieces if piece.violation is not None}


@pytest.mark.parametrize(
    "experiment",
    [
        HistoryIndependence(),
        Neighbours(),
        Ends(),
        Stops(),
        Streams(),
        PagedAttention(),
        Numerics(),
        SamplingSemantics(),
        OneDistribution(),
        Sampling(),
    ],
    ids=lambda experiment: str(experiment.id),
)
def test_our_engine_passes_and_every_property_is_judged(
    experiment: Experiment, engine: Adapter, evidence_of: EvidenceOf
) -> None:
    pieces = evidence_of(experiment, engine)
    assert broken(pieces) == set()
    assert {piece.property_id for piece in pieces} == set(experiment.judges)
    assert all(piece.examples > 0 for piece in pieces)
    assert not any(piece.untrusted for piece in pieces)


def test_a_temperature_that_is_off_by_a_hundredth_loses_against_the_known_noise(
    engine: Adapter, evidence_of: EvidenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = engine_logits.truncate

    def hotter(logits: Tensor, rows: Any) -> None:
        logits.div_(1.01)
        right(logits, rows)

    monkeypatch.setattr(engine_sampler, "truncate", hotter)
    assert "samp.coupled" in broken(evidence_of(Sampling(), engine))


def test_a_top_p_that_is_too_wide_leaves_the_support(
    engine: Adapter, evidence_of: EvidenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = engine_logits._top_p
    monkeypatch.setattr(
        engine_logits, "_top_p", lambda logits, ps: right(logits, [min(1, p + 0.05) for p in ps])
    )
    assert "samp.support" in broken(evidence_of(Sampling(), engine))


def test_noise_without_the_request_in_its_key_is_shared(
    engine: Adapter, evidence_of: EvidenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        engine_sampler.Sampler,
        "_draw",
        lambda self, row: Draw(7, 7, len(row.output_token_ids), row.sample_index, 1),
    )
    found = broken(evidence_of(Sampling(), engine))
    assert {"samp.coupled", "samp.independence"} <= found
    assert "samp.support" not in found


def test_a_seed_that_is_ignored_is_found(
    engine: Adapter, evidence_of: EvidenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seedless(seed: int | None, **place: Any) -> Draw:
        return draw_for(None, **place)

    monkeypatch.setattr(engine_sampler, "draw_for", seedless)
    assert broken(evidence_of(SamplingSemantics(), engine)) == {"samp.seed-semantics"}


def test_a_penalty_with_the_wrong_sign_is_found(
    engine: Adapter, evidence_of: EvidenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = engine_logits._penalise_output

    def wrong(logits: Tensor, rows: Any) -> None:
        before = logits.clone()
        right(logits, rows)
        logits.copy_(2 * before - logits)

    monkeypatch.setattr(engine_logits, "_penalise_output", wrong)
    assert broken(evidence_of(SamplingSemantics(), engine)) == {"samp.penalties"}


def test_logprobs_of_the_token_before_are_found(
    engine: Adapter, evidence_of: EvidenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(logits: Tensor, *details: Any) -> Any:
        other = logits.roll(1, dims=0) if len(logits) > 1 else logits * 0.99
        return report_logprobs(other, *details)

    monkeypatch.setattr(engine_sampler, "report_logprobs", late)
    assert "samp.logprobs" in broken(evidence_of(SamplingSemantics(), engine))


def _forward_with(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    right = TorchBackend.forward

    def forward(self: TorchBackend, q: Tensor, kv_cache: Tensor, metadata: Any, **more: Any) -> Any:
        return change(right, self, q, kv_cache, metadata, **more)

    return forward


def _wrong_scale(right: Any, self: Any, q: Tensor, *rest: Any, **more: Any) -> Tensor:
    out: Tensor = right(self, q * 1.001, *rest, **more)
    return out


def _half_precision(right: Any, self: Any, q: Tensor, *rest: Any, **more: Any) -> Tensor:
    out: Tensor = right(self, q, *rest, **more)
    return out.bfloat16().to(out.dtype) if out.dtype == torch.float32 else out


def _last_key_lost(right: Any, self: Any, q: Tensor, cache: Tensor, *rest: Any, **m: Any) -> Tensor:
    """The last block's first slot is overwritten by zeros before it is read."""
    metadata = rest[0]
    last = metadata.block_tables.long().gather(
        1, ((metadata.seq_lens.long() - 1) // cache.shape[2])[:, None]
    )
    cache[:, last[:, 0], 0] = 0
    out: Tensor = right(self, q, cache, *rest, **m)
    return out


@pytest.mark.parametrize(
    ("change", "property_id"),
    [(_wrong_scale, "num.attn"), (_half_precision, "num.scaling"), (_last_key_lost, "num.attn")],
)
def test_attention_that_is_slightly_wrong_is_found(
    change: Callable[..., Tensor],
    property_id: str,
    engine: Adapter,
    evidence_of: EvidenceOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TorchBackend, "forward", _forward_with(change))
    assert property_id in broken(evidence_of(PagedAttention(), engine))


def test_a_lost_key_shows_in_tokens_and_scores(
    engine: Adapter, evidence_of: EvidenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchBackend, "forward", _forward_with(_last_key_lost))
    found = broken(evidence_of(Numerics(), engine))
    assert {"num.greedy-near-tie", "num.logit-parity", "num.threeway"} <= found
