"""`pagetwin profile` from the command line."""

import json
from pathlib import Path

import pytest

from pagetwin.cli import main


def command(model: Path, out: Path, *more: str) -> list[str]:
    smoke = ["--load-format", "dummy", "--scale", "0.02", "--max-num-seqs", "4", "--steps", "2"]
    return ["profile", "--model", str(model), "--out", str(out), *smoke, *more]


def test_it_writes_a_trace_and_prints_where_the_time_went(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trace.json"
    assert main(command(tiny_model, out)) == 0
    names = {event["name"] for event in json.loads(out.read_text())["traceEvents"]}
    assert {"schedule", "prepare", "forward", "sample", "update", "layer 0 mlp"} <= names
    printed = capsys.readouterr().out
    assert "forward" in printed
    assert f"2 steps in {out}" in printed


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--steps", "0"], "--steps 0"),
        (["--skip", "-1"], "--skip -1"),
        (["--skip", "900"], "skip=900"),
        (["--workload", "tweets"], "tweets"),
        (["--scale", "3"], "--scale"),
        (["--dtype", "float7"], "float7"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_file(
    tiny_model: Path,
    tmp_path: Path,
    more: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "trace.json"
    assert main(command(tiny_model, out, *more)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert not out.exists()
