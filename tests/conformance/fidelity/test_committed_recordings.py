"""What docs/fidelity.md is made from: committed recordings, and the profiles that they give."""

from pathlib import Path

import msgspec
import pytest

from pagetwin.conformance.fidelity.result import FidelityReport, WhatIfFidelity
from pagetwin.reports.peers import BASELINES
from pagetwin.simulator.costs.calibration import calibrate
from pagetwin.simulator.costs.profile import read_profile
from pagetwin.simulator.recordings.compact import read_compact

RECORDED = tuple(
    f"{device}_{model}" for device in ("h100", "h200") for model in ("qwen3-0.6b", "llama-3.1-8b")
)
DATA = Path(__file__).resolve().parents[3] / "simulator" / "data"
HISTORIES = BASELINES / "histories"


def recording(name: str) -> Path:
    return HISTORIES / f"{name}.compact.xz"


@pytest.mark.parametrize("name", RECORDED)
def test_results_and_profile_are_of_the_committed_recording(name: str) -> None:
    device, _, model = name.partition("_")
    path = BASELINES / f"{device}_fidelity_{model}.json"
    report = msgspec.json.decode(path.read_bytes(), type=FidelityReport)
    profile = read_profile(DATA / f"{name}.profile.json")
    assert report.left_one_out
    assert report.histories[0].name == recording(name).name
    assert [one.sha256 for one in report.histories] == [one.sha256 for one in profile.fitted_to]
    assert [one.name for one in report.histories] == list(report.decisions)
    for one in report.histories:
        content = read_compact((HISTORIES / one.name).read_bytes(), one.name)
        assert content.source_sha256 == one.sha256
        assert report.decisions[one.name].difference is None
        assert report.decisions[one.name].steps == content.events.count("p")
    workloads = {run.workload for run in report.runs}
    assert workloads == {"uniform", "chat", "single", "shared_prefix", "long_prefill"}


def test_what_was_said_of_other_knobs_is_of_committed_recordings_that_the_fit_did_not_see() -> None:
    judged = msgspec.json.decode(
        (BASELINES / "h200_whatif_qwen3-0.6b.json").read_bytes(), type=list[WhatIfFidelity]
    )
    assert judged
    for one in judged:
        assert one.changes == {"max_num_seqs": "64"}
        assert not one.was_fitted_to
        for source in one.sources:
            content = read_compact((HISTORIES / source.name).read_bytes(), source.name)
            assert content.source_sha256 == source.sha256


@pytest.mark.slow
def test_the_twin_decides_as_the_recorded_engine_did_and_the_fit_is_the_committed_one() -> None:
    committed = read_profile(DATA / "h100_qwen3-0.6b.profile.json")
    again = calibrate([recording("h100_qwen3-0.6b")])
    assert again.subject == committed.subject
    for name, held_out in committed.cross_validation.items():
        found = again.cross_validation[name]
        assert found.total_error == pytest.approx(held_out.total_error, abs=1e-4)
