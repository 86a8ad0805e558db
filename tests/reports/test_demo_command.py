"""`pagetwin demo` around a run that is made up: files, output, exit code."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pagetwin.conformance.demo.run
from pagetwin.cli import main
from pagetwin.conformance.demo.result import DemoResult, Difference, concluded
from pagetwin.engine.errors import ModelError


def pretend(monkeypatch: pytest.MonkeyPatch, outcome: DemoResult | Exception) -> None:
    """Puts an outcome in the place of the run; the run still writes its history first."""

    def run_demo(options: Any, history: Path, progress: Any) -> DemoResult:
        history.write_text("{}\n")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(pagetwin.conformance.demo.run, "run_demo", run_demo)


def test_an_agreeing_run_leaves_three_files_and_exits_with_0(
    demo_result: DemoResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend(monkeypatch, demo_result)
    assert main(["demo", "--out", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    written = (tmp_path / "out" / "summary.json").read_text()
    assert captured.out == written
    assert json.loads(written)["decisions_compared"] == 4210
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["history.jsonl", "report.html", "summary.json"]


def test_without_json_it_says_the_verdict_and_where_the_page_is(
    demo_result: DemoResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend(monkeypatch, demo_result)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "agree" in out
    assert str(tmp_path / "report.html") in out


def test_a_disagreement_is_explained_and_exits_with_1_and_still_leaves_the_page(
    demo_result: DemoResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace = msgspec.structs.replace
    difference = Difference(
        what="scheduled[0].num_scheduled_tokens",
        where="step 3",
        engine="64",
        other="63",
        other_side="twin",
    )
    summary = concluded(replace(demo_result.summary, decision_differences=1))
    pretend(monkeypatch, replace(demo_result, summary=summary, differences=(difference,)))
    assert main(["demo", "--out", str(tmp_path), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["agreed"] is False
    assert captured.err.splitlines() == [
        "first difference, at step 3:",
        "  scheduled[0].num_scheduled_tokens",
        "    engine  64",
        "    twin    63",
    ]
    assert "num_scheduled_tokens" in (tmp_path / "report.html").read_text()


def test_a_run_that_exercised_too_little_exits_with_1_and_says_what(
    demo_result: DemoResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = concluded(msgspec.structs.replace(demo_result.summary, partial_hits=0))
    pretend(monkeypatch, msgspec.structs.replace(demo_result, summary=summary))
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "did not exercise partial_hits" in capsys.readouterr().err


def test_a_run_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, ModelError("the model\nis gone"))
    assert main(["demo", "--out", str(tmp_path / "deep" / "out")]) == 2
    assert capsys.readouterr().err == "pagetwin: the model is gone\n"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_demo(*arguments: Any) -> DemoResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(pagetwin.conformance.demo.run, "run_demo", run_demo)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "pagetwin: interrupted; no result was written\n"
    assert list(tmp_path.iterdir()) == []
