"""What docs/fidelity.md is made from: committed recordings, and the profiles that they give."""

from pathlib import Path

import msgspec
import pytest

from pagetwin.conformance.fidelity.result import FidelityReport
from pagetwin.reports.peers import BASELINES
from pagetwin.simulator.costs.calibration import calibrate
from pagetwin.simulator.costs.profile import read_profile
from pagetwin.simulator.recordings.compact import read_compact

MODELS = ("qwen3-0.6b", "llama-3.1-8b")
DATA = Path(__file__).resolve().parents[3] / "simulator" / "data"


def recording(model: str) -> Path:
    return BASELINES / "histories" / f"h100_{model}.compact.xz"


@pytest.mark.parametrize("model", MODELS)
def test_results_and_profile_are_of_the_committed_recording(model: str) -> None:
    report = msgspec.json.decode(
        (BASELINES / f"h100_fidelity_{model}.json").read_bytes(), type=FidelityReport
    )
    profile = read_profile(DATA / f"h100_{model}.profile.json")
    content = read_compact(recording(model).read_bytes(), model)
    assert content.source_sha256 == report.histories[0].sha256 == profile.fitted_to[0].sha256
    assert report.left_one_out
    assert all(judged.difference is None for judged in report.decisions.values())
    [judged] = report.decisions.values()
    assert judged.steps == content.events.count("p")
    assert len(report.runs) == 5


@pytest.mark.slow
def test_the_twin_decides_as_the_recorded_engine_did_and_the_fit_is_the_committed_one() -> None:
    committed = read_profile(DATA / "h100_qwen3-0.6b.profile.json")
    again = calibrate([recording("qwen3-0.6b")])
    assert again.subject == committed.subject
    for name, held_out in committed.cross_validation.items():
        found = again.cross_validation[name]
        assert found.total_error == pytest.approx(held_out.total_error, abs=1e-4)
