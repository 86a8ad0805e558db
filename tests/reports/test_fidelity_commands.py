"""`pagetwin calibrate`, `validate` and `whatif` from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pagetwin.cli import main
from pagetwin.conformance.fidelity.result import FidelityReport
from pagetwin.reports.fidelity_table import error_table
from pagetwin.reports.results import decoded

Write = Callable[..., Path]


@pytest.fixture
def profile(write_history: Write, tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    histories = [str(write_history("calm", rate=4.0)), str(write_history("busy", rate=40.0))]
    assert main(["calibrate", *histories, "-o", str(path)]) == 0
    return path


def test_a_profile_is_made_and_told(
    write_history: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "profile.json"
    histories = [str(write_history("calm", rate=4.0)), str(write_history("busy", rate=40.0))]
    assert main(["calibrate", *histories, "-o", str(profile)]) == 0
    out = capsys.readouterr().out
    assert "calibrated: tiny on cpu; step times of workloads left out were within" in out
    assert "a query-key pair" in out
    assert json.loads(profile.read_text())["schema"] == "pagetwin.profile/2"


def test_validation_is_told_and_its_json_is_alone_on_standard_output(
    profile: Path, write_history: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history, out = str(write_history("other", rate=15.0)), tmp_path / "fidelity.json"
    capsys.readouterr()
    assert main(["validate", str(profile), history]) == 0
    told = capsys.readouterr().out
    assert "ttft_p95" in told
    assert "decisions" in told
    assert main(["validate", str(profile), history, "--json", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed == out.read_text()
    assert json.loads(printed)["decisions"]["other.jsonl"]["difference"] is None


def test_a_run_under_other_knobs_stands_beside_the_measured_one(
    profile: Path, write_history: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    history = str(write_history("other", rate=15.0))
    capsys.readouterr()
    command = ["whatif", history, "--set", "max_num_seqs=2", "--profile", str(profile)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "changed: max_num_seqs=2" in told
    assert [line.split()[1] for line in told.splitlines()[3:]] == ["measured", "twin", "changed"]
    assert main([*command, "--json"]) == 0
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert run["changed"]["e2e_p95"] > run["twin"]["e2e_p95"]


def test_a_prediction_under_other_knobs_is_judged_by_a_recording_made_with_them(
    profile: Path, write_history: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_history("other", rate=40.0, max_num_seqs=2)
    few = few.rename(few.with_name("few.jsonl"))
    history = write_history("other", rate=40.0)
    command = ["whatif", str(history), "--set", "max_num_seqs=2", "--profile", str(profile)]
    capsys.readouterr()
    out = tmp_path / "judged.json"
    assert main([*command, "--against", str(few), "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert "other/0  max_num_seqs=2  no" in told
    [judged] = json.loads(out.read_text())
    assert judged["num_requests"] == 60
    assert not judged["was_fitted_to"]
    assert all(abs(measure["error"]) < 0.03 for measure in judged["measures"])
    # What the knob changed, and what it was predicted to change: the two are far from nothing.
    ttft = {measure["name"]: measure for measure in judged["change"]}["ttft_p50"]
    assert ttft["error"] > 1
    now = {measure["name"]: measure for measure in judged["measures"]}["ttft_p50"]
    measured = now["measured"] / ttft["measured"] - 1
    rows = [line for line in told.splitlines() if " change " in line or " error " in line]
    assert f"{measured:+.1%}" in rows[0]
    assert f"{ttft['error']:+.1%}" in rows[1]
    assert f"{now['error']:+.1%}" in rows[2]
    assert main([*command[:2], "--set", "max_num_seqs=3", "--against", str(few)]) == 2
    assert "was recorded with max_num_seqs=2, not 3" in capsys.readouterr().err
    other = write_history("another")
    assert main([*command, "--against", str(other)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_what_the_fit_saw_is_said_of_a_prediction_under_other_knobs(
    write_history: Write, tmp_path: Path
) -> None:
    few = write_history("other", rate=40.0, max_num_seqs=2)
    few = few.rename(few.with_name("few.jsonl"))
    history, out = write_history("other", rate=40.0), tmp_path / "judged.json"
    command = ["whatif", str(history), "--set", "max_num_seqs=2", "--against", str(few)]
    assert main([*command, "-o", str(out)]) == 0
    [judged] = json.loads(out.read_text())
    assert judged["was_fitted_to"]
    assert [source["name"] for source in judged["sources"]] == ["other.jsonl", "few.jsonl"]


def test_runs_are_told_apart_by_load_and_process(
    profile: Path, write_history: Write, tmp_path: Path
) -> None:
    (tmp_path / "chat").mkdir()
    first = write_history("chat/at-once").rename(tmp_path / "first.jsonl")
    names = ("chat/at-once", "chat/poisson:60%", "chat/poisson:130%")
    histories = [str(first), *(str(write_history(name)) for name in names)]
    out = tmp_path / "fidelity.json"
    assert main(["validate", str(profile), *histories, "-o", str(out)]) == 0
    table = error_table([decoded(out, FidelityReport)])
    assert [row[1:6] for row in table.rows] == [
        ["chat", "all at once", "1", "1", "no"],
        ["chat", "all at once", "2", "1", "no"],
        ["chat", "below (60%)", "3", "1", "no"],
        ["chat", "above (130%)", "4", "1", "no"],
    ]


def test_without_a_profile_the_history_is_its_own(
    write_history: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["whatif", str(write_history()), "--set", "max_num_seqs=2"]) == 0
    assert "not validated" in capsys.readouterr().out


def test_a_compact_history_serves_as_the_whole_does(
    profile: Path, write_history: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    history = write_history("other", rate=15.0)
    assert main(["bench", "compact", str(history)]) == 0
    compact = history.with_name("other.compact.xz")
    errors = []
    for path in (history, compact):
        capsys.readouterr()
        assert main(["validate", str(profile), str(path), "--json"]) == 0
        [run] = json.loads(capsys.readouterr().out)["runs"]
        errors.append([measure["error"] for measure in run["measures"]])
    assert errors[0] == pytest.approx(errors[1], abs=1e-4)
    assert main(["bench", "compact", str(history), "--out", "it.xz"]) == 2


def test_another_engines_requests_are_run_uncalibrated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests, out = tmp_path / "requests.jsonl", tmp_path / "elsewhere.json"
    lines = [
        {
            "request_id": f"r{i}",
            "input_toks": 200,
            "output_toks": 20,
            "queued_ts": float(i),
            "first_token_ts": i + 0.5,
            "last_token_ts": i + 2.0,
        }
        for i in range(5)
    ]
    requests.write_text("\n".join(map(json.dumps, lines)))
    command = ["bench", "elsewhere", str(requests), "--model", "Llama-3.1-8B", "--name", "a run"]
    assert main([*command, "--gpu", "h100", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("uncalibrated: roofline of the H100's datasheet")
    result = json.loads(out.read_text())
    assert result["num_requests"] == 5
    assert not result["blocks_are_recorded"]
    other = tmp_path / "other.json"
    assert main([*command, "--gpu", "abacus", "--out", str(other)]) == 2
    assert "abacus" in capsys.readouterr().err
    assert not other.exists()


def test_bad_input_leaves_nothing_behind(
    write_history: Write, profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new.json"
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    other = str(write_history("other", device="NVIDIA H200"))
    for command, named in (
        (["calibrate", str(empty)], "no step to fit to"),
        (["calibrate", str(tmp_path / "none.jsonl")], "none.jsonl"),
        (["validate", str(profile), other], "device"),
        (["validate", str(empty), other], "is no profile"),
        (["whatif", other, "--set", "speed=2"], "unknown knob"),
    ):
        assert main([*command, "-o", str(out)]) == 2
        assert named in capsys.readouterr().err
        assert not out.exists()


@pytest.mark.parametrize("command", [["calibrate"], ["whatif", "--set", "max_num_seqs=2"]])
def test_where_nothing_can_be_written_is_said_before_any_work(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The history is not there either, and would be the first thing to read."""
    assert main([*command, str(tmp_path / "none.jsonl"), "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"pagetwin: {tmp_path}: is a folder; name a file\n"
