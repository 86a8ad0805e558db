"""The commands over exploration and faults: what they print, write and exit with."""

import json
from pathlib import Path

import pytest

from pagetwin.cli import main
from pagetwin.conformance.exploration.result import load_exploration
from pagetwin.engine.errors import TraceError

ROOT = Path(__file__).resolve().parents[2]


def test_exploring_named_scopes_prints_a_table_and_writes_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--scope", "quick-window", "--scope", "quick-no-caching"]
    assert main(["verify", "explore", *named, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    result = load_exploration(tmp_path / "out" / "exploration.json")
    assert [one.name for one in result.scopes] == ["quick-window", "quick-no-caching"]
    assert result.complete
    assert f"{result.states:,} states, {result.transitions:,} transitions: all sound" in printed


def test_exploring_without_time_is_not_enough_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["verify", "explore", "--scope", "quick-window", "--budget", "0.000001", "--json"]
    assert main(command) == 3
    [scope] = json.loads(capsys.readouterr().out)["scopes"]
    assert not scope["complete"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explore", "--scope", "nowhere"], "--scope nowhere is not known"),
        (["explore", "--budget", "0"], "--budget 0.0 is not a positive number"),
        (["faults", "--kind", "flood"], "--kind 'flood': the kinds that fingerprint: can show"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_faults_of_one_kind_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "faults", "--kind", "fault.clock-jump", "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [one["setting"] for one in reports] == [
        "recompute",
        "recompute-async",
        "swap",
        "swap-async",
    ]
    assert all(one["struck"] == 1 and not one["broken"] for one in reports)


@pytest.mark.parametrize("name", ["exploration", "exploration_forced"])
def test_the_committed_exploration_is_sound_and_the_page_has_its_numbers(name: str) -> None:
    result = load_exploration(ROOT / "reports" / "baselines" / f"{name}.json")
    assert result.holds
    assert result.complete
    page = (ROOT / "docs" / "exploration_and_faults.md").read_text()
    assert f"{result.states:,} states and {result.transitions:,} transitions" in page
    assert result.commit is not None
    assert result.commit.id[:7] in page
    for one in result.scopes:
        assert f"| {one.name} | {one.states:,} | {one.num_transitions:,} |" in page


def test_a_file_that_is_no_exploration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text("{}")
    with pytest.raises(TraceError, match=r"wrong\.json: not an exploration"):
        load_exploration(path)
