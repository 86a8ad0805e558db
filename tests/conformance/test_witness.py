"""Witnesses: a violation in words and as a picture, on the history that shows it."""

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from pagetwin.conformance.scenario import load_scenario
from pagetwin.conformance.twins import Verdict, judge_scenario
from pagetwin.conformance.witness import tell
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import StepPlan
from pagetwin.reports.scenario_figure import scenario_figure

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
SVG = "{http://www.w3.org/2000/svg}"


class LosesACopy(Scheduler):
    """The last copy of a step is not made."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is None or not plan.copies:
            return plan
        lost = msgspec.structs.replace(plan, copies=plan.copies[:-1])
        self._state.in_flight[-1] = lost
        return lost


@pytest.fixture(scope="module")
def broken() -> Verdict:
    """The checkers' judgement alone: the twin would end the run at the lost copy."""
    for path in CORPUS:
        scenario = load_scenario(path)
        one, other = (LosesACopy(scenario.cache, scenario.scheduler) for _ in range(2))
        verdict = judge_scenario(scenario, left=one, right=other)
        if verdict.violations:
            return verdict
    raise AssertionError("no stored scenario needs its copies")


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_every_event_of_a_history_is_told_and_drawn(path: Path) -> None:
    verdict = judge_scenario(load_scenario(path))
    text = tell(verdict.records)
    assert "!!" not in text
    for record in verdict.records:
        if hasattr(record, "plan"):
            assert f"step {record.plan.step}, " in text
            assert all(one.seq_id in text for one in record.plan.scheduled)
    root = ElementTree.fromstring(scenario_figure(verdict.records))
    assert root.tag == f"{SVG}svg"
    blocks = [g for g in root.iter(f"{SVG}g") if (g.get("class") or "").startswith("b ")]
    assert blocks
    assert not [r for r in root.iter(f"{SVG}rect") if r.get("class") == "broken"]


def test_a_violation_stands_below_the_event_that_shows_it(broken: Verdict) -> None:
    first = broken.violations[0]
    lines = tell(broken.records, broken.violations).splitlines()
    place = lines.index(f"    !! {first}")
    above = [line for line in lines[:place] if line.startswith(("step ", "result of step "))]
    assert f"step {first.step}" in above[-1].replace(",", ":").split(":")[0]


def test_a_violation_is_marked_in_the_picture_and_written_below_it(broken: Verdict) -> None:
    root = ElementTree.fromstring(scenario_figure(broken.records, broken.violations))
    [mark] = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "broken"]
    told = [title.text for title in mark.iter(f"{SVG}title")]
    assert told == [str(broken.violations[0])]
    written = [t.text for t in root.iter(f"{SVG}text") if t.get("class") == "message"]
    assert written == [str(one) for one in broken.violations[:3]]
