"""What strikes the plain runner strikes the GPU's, too, and its memory can be looked into."""

import sys
from collections.abc import Iterator

import msgspec
import pytest

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.catalogue.faults import STRUCK
from pagetwin.conformance.experiments.faults import Faults
from pagetwin.conformance.experiments.kv_memory import KVMemory
from pagetwin.conformance.faults.campaign import KINDS, Campaign
from pagetwin.conformance.faults.fault import AllocationFails, AnyFault, RowFails, SwapFails
from pagetwin.conformance.properties import CATALOGUE
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine import factory
from pagetwin.engine.gpu_runner import GpuRunner
from pagetwin.engine.trace import ResultRecord

ON_GPU = "pagetwin:random?device=cuda&hidden_size=128&dtype=bfloat16"


@pytest.fixture(scope="module")
def engine(device: str) -> Iterator[Adapter]:
    """Interpreted, only what reads and writes the device's tokens is a kernel: it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            patch.setattr(factory, "ModelRunner", GpuRunner)
            adapter = make_adapter("pagetwin:random?device=cpu&attention_backend=torch")
            for name in ("norm", "activation", "linear", "attention"):
                module = sys.modules[f"pagetwin.engine.layers.{name}"]
                patch.setattr(module, "uses_triton", lambda tensor: False)
        else:
            adapter = make_adapter(ON_GPU)
        yield adapter
        adapter.close()


@pytest.fixture(scope="module")
def campaign(engine: Adapter) -> Campaign:
    return Campaign(engine)


@pytest.mark.parametrize(
    "fault",
    [
        SwapFails(number=1),
        RowFails(number=2, request_id="c"),
        AllocationFails(number=8, allocation=6),
    ],
    ids=lambda fault: fault.property_id,
)
def test_a_fault_hurts_only_whom_it_hits(
    fault: AnyFault, campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody asks for scores no step waits for the host, so that the device draws."""

    def by_host(*_: object) -> None:
        raise AssertionError("the host draws")

    monkeypatch.setattr(GpuRunner, "_draw_by_host", by_host)
    setting = campaign.settings()["swap-async"]
    judged = campaign.judge(msgspec.structs.replace(setting, fault=fault))
    assert not judged.violations
    assert judged.struck
    assert judged.num_ended > 0


@pytest.mark.gpu
def test_nan_in_the_logits_of_a_graph_fails_one_row_of_it(engine: Adapter) -> None:
    campaign = Campaign(engine)
    setting = campaign.settings()["recompute-async"]
    fault = RowFails(number=5, request_id="c")
    judged = campaign.judge(msgspec.structs.replace(setting, fault=fault))
    assert not judged.violations
    [broken] = [r for r in judged.records if isinstance(r, ResultRecord) and r.failed]
    assert broken.failed.keys() == {"c/0"}
    assert broken.timings.graph_size > 0


@pytest.mark.gpu
@pytest.mark.slow
def test_every_kind_of_fault_strikes_and_hurts_only_whom_it_hits(engine: Adapter) -> None:
    pieces = list(Faults().run(engine, Budget(600.0, max_examples=5), seed=0))
    assert [str(piece.violation) for piece in pieces if piece.violation] == []
    for kind in KINDS:
        assert sum(piece.goals[STRUCK] for piece in pieces if piece.property_id == kind) > 0, kind


@pytest.mark.gpu
def test_nan_where_nobody_may_read_changes_nothing_and_swaps_keep_every_byte(
    engine: Adapter,
) -> None:
    pieces = list(KVMemory().run(engine, Budget(600.0, max_examples=1), seed=0))
    assert [str(piece.violation) for piece in pieces if piece.violation] == []
    for property_id in KVMemory.judges:
        for goal in CATALOGUE[property_id].goals:
            happened = sum(p.goals[goal] for p in pieces if p.property_id == property_id)
            assert happened > 10, goal
