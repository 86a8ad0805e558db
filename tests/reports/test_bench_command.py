"""`pagetwin bench offline` from the command line: files, output, refusals."""

import json
from pathlib import Path

import pytest

from pagetwin.cli import main


def command(model: Path, *more: str) -> list[str]:
    smoke = ["--load-format", "dummy", "--scale", "0.01", "--max-num-seqs", "4", "--repeats", "1"]
    return ["bench", "offline", "--model", str(model), "--workload", "single", *smoke, *more]


def test_json_is_alone_on_standard_output_and_equal_to_the_file(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "run.json"
    assert main(command(tiny_model, "--json", "--out", str(out))) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == out.read_text()
    document = json.loads(captured.out)
    assert document["schema"] == "pagetwin.bench.offline/1"
    assert {"version", "commit", "device", "machine", "versions", "seed"} <= set(document)
    [row] = document["rows"]
    assert row["output_tokens_per_s"] > 0
    assert row["total_tokens_per_s"] > row["output_tokens_per_s"]
    assert document["models"]["tiny"]["config"]["scheduler"]["max_num_seqs"] == 4


def test_without_json_it_prints_a_row_per_workload(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model, "--workload", "shared_prefix")) == 0
    out = capsys.readouterr().out
    assert "single / 100" in out
    assert "shared_prefix / 100" in out
    assert "start-up" in out


def test_a_history_is_kept_beside_the_result(tiny_model: Path, tmp_path: Path) -> None:
    record = tmp_path / "steps.jsonl"
    assert main(command(tiny_model, "--record", str(record))) == 0
    assert '"type":"header"' in record.read_text().splitlines()[0]


@pytest.mark.slow
def test_several_models_run_each_in_a_process_of_its_own(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((tiny_model / "config.json").read_text())
    assert main(command(tiny_model, "--model", str(other), "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in document["rows"]] == ["tiny", "other"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--scale", "0"], "--scale"),
        (["--scale", "2"], "--scale"),
        (["--workload", "tweets"], "tweets"),
        (["--repeats", "0"], "repeats=0"),
        (["--repeats", "many"], "--repeats"),
        (["--dtype", "float7"], "float7"),
        (["--attention-backend", "none"], "none"),
        (["--max-model-len", "100000"], "100000"),
        (["--model", "elsewhere/tiny"], "tiny"),
        (["--model", "other", "--record", "x.jsonl"], "--record"),
        (["--bogus"], "--bogus"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_file(
    tiny_model: Path,
    tmp_path: Path,
    more: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run.json"
    assert main(command(tiny_model, "--out", str(out), *more)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pagetwin: ")
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert list(tmp_path.iterdir()) == [tiny_model]


def test_a_folder_in_the_place_of_the_file_is_refused_before_anything_runs(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model, "--out", str(tmp_path))) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_bench_alone_is_a_question_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    assert "offline" in capsys.readouterr().out
