"""pagetwin verify from the command line: exit codes, files, replay, runs that are cut short."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pagetwin.cli import main
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.experiments.scenarios import play_and_judge
from pagetwin.conformance.scenario import load_scenario, save_scenario
from pagetwin.conformance.suite.evidence import Status
from pagetwin.conformance.suite.result import ExitCode
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.trace import HistoryWriter, read_history

CORPUS = Path(__file__).parent / "conformance" / "corpus"


def verify(*arguments: str) -> int:
    return main(["verify", *arguments])


def results(folder: Path) -> dict[str, dict[str, object]]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    return {row["property_id"]: row for row in map(json.loads, lines)}


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that hears no abort."""
    monkeypatch.setattr(Scheduler, "abort_request", lambda self, request_id: False)


def test_a_run_leaves_a_log_results_junit_and_a_summary_and_nothing_of_an_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    earlier = out / "repro" / "kv.no-leak" / "scenario.json"
    earlier.parent.mkdir(parents=True)
    for path in (earlier, out / "run.jsonl", out / "notes.txt"):
        path.write_text("earlier")
    code = verify("--engine", "fingerprint:", "--budget", "4", "--out", str(out))
    assert code in (ExitCode.CLEAN, ExitCode.NOT_ENOUGH_EVIDENCE)
    rows = results(out)
    assert not [row for row in rows.values() if row["status"] in ("fail", "error")]
    assert rows["twin.lockstep"]["examples"]
    document = json.loads((out / "results.json").read_text())
    assert document["complete"]
    assert document["exit_code"] == code
    assert not (out / "repro").exists()
    assert (out / "notes.txt").read_text() == "earlier", "a file that is not ours"
    kinds = [json.loads(line)["kind"] for line in (out / "run.jsonl").read_text().splitlines()]
    assert (kinds[0], kinds[-1]) == ("run", "result")
    cases = ET.parse(out / "junit.xml").getroot().iter("testcase")
    by_name = {case.get("name"): case for case in cases}
    assert set(by_name) == set(rows)
    for name, row in rows.items():
        case = by_name[name]
        assert (case.find("skipped") is not None) == (row["status"] == Status.UNSUPPORTED)
        late = row["status"] in (Status.VACUOUS, Status.UNDECIDED)
        assert (case.find("failure") is not None) == late
    assert "| pass | kv.conservation |" in (out / "summary.md").read_text()
    shown = capsys.readouterr().out
    assert "fingerprint" in shown
    rate = f"{rows['twin.lockstep']['examples']:,} random scenarios were judged by every checker"
    assert rate in shown
    assert " a minute" in shown


@pytest.mark.usefixtures("deaf")
def test_a_violation_exits_with_1_and_its_scenario_replays_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    code = verify("--engine", "fingerprint:", "--budget", "6", "--out", str(out), "--json")
    document = json.loads(capsys.readouterr().out)
    assert code == document["exit_code"] == ExitCode.VIOLATION
    failing = [row for row in document["results"] if row["status"] == "fail"]
    assert "twin.lockstep" in {row["property_id"] for row in failing}
    [scenario] = [Path(row["scenario"]) for row in failing if row["property_id"] == "twin.lockstep"]
    assert list(read_history(scenario.parent / "history.jsonl"))
    assert verify("replay", str(scenario), "--engine", "fingerprint:") == ExitCode.VIOLATION
    assert "twin.lockstep" in capsys.readouterr().out
    assert verify("judge", str(scenario.parent / "history.jsonl")) == ExitCode.VIOLATION
    assert "twin.lockstep" in capsys.readouterr().out
    monkeypatch.undo()
    assert verify("replay", str(scenario), "--engine", "fingerprint:") == ExitCode.CLEAN


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.json"))[:3], ids=lambda path: path.stem)
@pytest.mark.parametrize("engine", ["fingerprint:", "sim:"])
def test_stored_scenarios_replay_clean(path: Path, engine: str) -> None:
    assert verify("replay", str(path), "--engine", engine) == ExitCode.CLEAN


DIES = """
import sys
from pagetwin.conformance.adapters.protocol import EngineDied
from pagetwin.conformance.adapters.stepping import SchedulerSession
from pagetwin.conformance.adapters.without_model import WithoutModelAdapter
from pagetwin.engine.scheduler import Scheduler

class Dying(WithoutModelAdapter):
    left = 9

    def open(self, config):
        Dying.left -= 1
        if Dying.left < 0:
            raise EngineDied("the server went away")
        return super().open(config)

def make():
    return Dying("dying", Scheduler)
"""


def test_an_engine_that_dies_keeps_partial_results_marked_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dying_engine.py").write_text(DIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = verify("--engine", "py:dying_engine:make", "--budget", "30", "--out", "out")
    assert code == ExitCode.USAGE
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not document["complete"]
    assert document["cut_short"] == "the server went away"
    assert any(row["examples"] for row in document["results"])
    assert "INCOMPLETE: the server went away" in capsys.readouterr().out
    errors = ET.parse(tmp_path / "out" / "junit.xml").getroot()[0].get("errors")
    assert errors == "1"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--engine", "nothing:"],
        ["--engine", "fingerprint:", "--profile", "paged"],
        ["--engine", "fingerprint:", "--budget", "0"],
        ["--engine", "fingerprint:", "--budget", "nan"],
        ["--engine", "fingerprint:", "--waivers", "/no/such/file"],
        ["replay", "/no/such/file", "--engine", "sim:"],
    ],
)
def test_bad_input_exits_with_2_says_what_and_leaves_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    where = [] if "replay" in arguments else ["--out", str(out)]
    assert verify(*arguments, *where) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert error.startswith("pagetwin: ")
    assert "Traceback" not in error
    assert not out.exists()


def test_a_scenario_from_the_future_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "future.json"
    save_scenario(load_scenario(sorted(CORPUS.glob("*.json"))[0]), path)
    path.write_text(path.read_text().replace("pagetwin.scenario/1", "pagetwin.scenario/7"))
    assert verify("replay", str(path), "--engine", "sim:") == ExitCode.USAGE
    assert "scenario/7" in capsys.readouterr().err


def test_a_recorded_history_is_judged_and_a_damaged_one_refused_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    adapter = make_adapter("sim:")
    played = play_and_judge(load_scenario(sorted(CORPUS.glob("*.json"))[0]), adapter)
    with HistoryWriter(path) as history:
        for record in played.records:
            history.write(record)
    assert verify("judge", str(path)) == ExitCode.CLEAN
    assert f"{len(played.records)} records, 0 violations" in capsys.readouterr().out
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3][:-9], *lines[4:]]))
    assert verify("judge", str(path)) == ExitCode.USAGE
    assert "history.jsonl:4: not a history record" in capsys.readouterr().err
    path.write_text(lines[0].replace("pagetwin.history/1", "pagetwin.history/8"))
    assert verify("judge", str(path)) == ExitCode.USAGE
    assert "history/8" in capsys.readouterr().err
    path.write_text("")
    assert verify("judge", str(path)) == ExitCode.USAGE


def test_the_catalogue_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("list", "--json") == 0
    ids = {row["id"] for row in json.loads(capsys.readouterr().out)}
    assert {"kv.conservation", "twin.lockstep", "life.ends"} <= ids


def test_an_adapter_that_lies_exits_with_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lying_engine.py").write_text(
        "from pagetwin.conformance.adapters.without_model import WithoutModelAdapter\n"
        "from pagetwin.conformance.capability import YES, Capabilities, Flag\n"
        "from pagetwin.engine.scheduler import Scheduler\n"
        "class Lying(WithoutModelAdapter):\n"
        "    def capabilities(self):\n"
        "        return Capabilities({**super().capabilities().support, Flag.TEXT: YES})\n"
        "def make():\n    return Lying('lying', Scheduler)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["adapter-check", "py:lying_engine:make"]) == ExitCode.UNTRUSTWORTHY
    assert "broken      text" in capsys.readouterr().out
    assert main(["adapter-check", "fingerprint:"]) == 0
