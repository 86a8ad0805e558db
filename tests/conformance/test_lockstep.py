"""Engine and twin decide alike, step by step, whatever happens to them."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given

from pagetwin.conformance.goals import GOALS, count_goals
from pagetwin.conformance.scenario import Scenario, load_scenario
from pagetwin.conformance.strategies import scenarios
from pagetwin.conformance.twins import judge_scenario

RARE = {"aborts while swapped", "beam searches failed", "plans that only preempt"}
"""Goals that a thousand random scenarios may miss; the stored ones reach them."""
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_lockstep_holds_on_every_stored_scenario(path: Path) -> None:
    verdict = judge_scenario(load_scenario(path))
    assert verdict.holds, verdict.explain()
    assert verdict.lockstep.steps > 0


def test_lockstep_of_the_stored_scenarios_reaches_every_goal() -> None:
    seen: Counter[str] = Counter()
    for path in CORPUS:
        seen.update(count_goals(judge_scenario(load_scenario(path)).records))
    assert not [goal for goal in GOALS if not seen[goal]]


def test_lockstep_holds_on_random_scenarios_in_which_everything_happens() -> None:
    seen: Counter[str] = Counter()

    @given(scenarios())
    def compare(scenario: Scenario) -> None:
        verdict = judge_scenario(scenario)
        assert verdict.holds, verdict.explain()
        seen.update(count_goals(verdict.records))
        seen["scenarios"] += 1
        seen["decisions"] += verdict.lockstep.decisions_compared

    compare()
    missed = {goal for goal in GOALS if not seen[goal]}
    assert seen["decisions"] > 10 * seen["scenarios"]
    if seen["scenarios"] < 1000:
        assert len(missed) < len(GOALS) / 3, missed
    else:
        assert missed <= RARE, missed
