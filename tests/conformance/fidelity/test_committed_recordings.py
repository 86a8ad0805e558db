"""What docs/fidelity.md is made from: committed recordings, and the profiles that they give."""

from pathlib import Path

import msgspec
import pytest

from pagetwin.conformance.fidelity.result import FidelityReport
from pagetwin.reports.peers import BASELINES
from pagetwin.simulator.costs.calibration import calibrate
from pagetwin.simulator.costs.profile import read_profile
from pagetwin.simulator.recordings.compact import read_compact

RECORDED = tuple(
    f"{device}_{model}" for device in ("h100", "h200") for model in ("qwen3-0.6b", "llama-3.1-8b")
)
DATA = Path(__file__).resolve().parents[3] / "simulator" / "data"


def recording(name: str) -> Path:
    return BASELINES / "histories" / f"{name}.compact.xz"


@pytest.mark.parametrize("name", RECORDED)
def test_results_and_profile_are_of_the_committed_recording(name: str) -> None:
    device, _, model = name.partition("_")
    path = BASELINES / f"{device}_fidelity_{model}.json"
    report = msgspec.json.decode(path.read_bytes(), type=FidelityReport)
    profile = read_profile(DATA / f"{name}.profile.json")
    content = read_compact(recording(name).read_bytes(), name)
    assert content.source_sha256 == report.histories[0].sha256 == profile.fitted_to[0].sha256
    assert report.left_one_out
    assert all(judged.difference is None for judged in report.decisions.values())
    [judged] = report.decisions.values()
    assert judged.steps == content.events.count("p")
    workloads = {run.workload for run in report.runs}
    assert workloads == {"uniform", "chat", "single", "shared_prefix", "long_prefill"}


@pytest.mark.slow
def test_the_twin_decides_as_the_recorded_engine_did_and_the_fit_is_the_committed_one() -> None:
    committed = read_profile(DATA / "h100_qwen3-0.6b.profile.json")
    again = calibrate([recording("h100_qwen3-0.6b")])
    assert again.subject == committed.subject
    for name, held_out in committed.cross_validation.items():
        found = again.cross_validation[name]
        assert found.total_error == pytest.approx(held_out.total_error, abs=1e-4)
