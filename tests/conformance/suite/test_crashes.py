"""An engine that raises has broken a property; what that does not touch is judged all the same."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    EngineCrashed,
    SessionConfig,
)
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.adapters.without_model import WithoutModelAdapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.history_independence import HistoryIndependence
from pagetwin.conformance.experiments.scenarios import NO_CRASH, play_and_judge
from pagetwin.conformance.observation import TokenSeen
from pagetwin.conformance.suite.evidence import Evidence, Status
from pagetwin.conformance.suite.experiment import Budget, Experiment
from pagetwin.conformance.suite.profiles import find_profile
from pagetwin.conformance.suite.result import ExitCode, SuiteResult
from pagetwin.conformance.suite.runner import RunOptions, SuiteRun
from pagetwin.engine.request import Request
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import StepPlan


class Raises:
    """An experiment in which the engine raises after a first piece of evidence."""

    id = "raises"
    judges = ("life.length",)
    needs: frozenset[Flag] = frozenset()
    weight = 1.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        yield Evidence(property_id="life.length", goals={"ends by length": 1})
        raise EngineCrashed("IndexError: 17")


def run_with(
    experiment: Experiment, adapter: Adapter | None = None
) -> tuple[SuiteRun, SuiteResult]:
    options = RunOptions(
        spec="fingerprint:", profile=find_profile("default"), budget_s=600, max_examples=1
    )
    chosen = adapter or make_adapter("fingerprint:")
    run = SuiteRun(chosen, options, experiments=[experiment])
    return run, run.run()


def statuses(result: SuiteResult) -> dict[str, Status]:
    return {one.property_id: one.status for one in result.results}


def test_a_crash_is_a_violation_and_no_end_of_the_run() -> None:
    _, result = run_with(Raises())
    assert result.complete
    assert result.exit_code == ExitCode.VIOLATION
    assert statuses(result)[NO_CRASH] == Status.FAIL
    assert statuses(result)["life.length"] == Status.UNDECIDED


class Brittle(Scheduler):
    """Raises where a chunk ends before its prompt."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is not None and not all(one.samples for one in plan.scheduled):
            raise EngineCrashed("RuntimeError: no offset")
        return plan


def test_what_crashes_one_history_is_replayed_and_the_others_are_judged() -> None:
    adapter = WithoutModelAdapter("brittle", Brittle)
    run, result = run_with(HistoryIndependence(), adapter=adapter)
    assert result.complete
    found = statuses(result)
    assert found[NO_CRASH] == Status.FAIL
    assert found["iso.history-independence"] == Status.UNDECIDED
    assert found["cache.hit-miss-parity"] == found["cache.ABA"] == Status.PASS
    scenario = run.tallies[NO_CRASH].scenario
    assert scenario is not None
    again = {one.property_id for one in play_and_judge(scenario, adapter).violations}
    assert NO_CRASH in again
    sound = make_adapter("fingerprint:")
    assert not play_and_judge(scenario, sound).violations


CRASHES = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    reply = {"reply": "ok"}
    if message["do"] == "describe":
        print(json.dumps({"info": {"name": "glass"}, "capabilities": {}}))
    if message["do"] == "run":
        print(json.dumps({"event": "token", "request_id": "r", "token_id": 7}))
        reply = {"reply": "crashed", "text": "IndexError: 17"}
    print(json.dumps(reply), flush=True)
"""


def test_what_came_before_a_crash_in_another_process_is_kept(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(CRASHES)
    adapter = make_adapter(f"cmd:{sys.executable} {tmp_path / 'engine.py'}")
    for _ in range(2):
        session = adapter.open(SessionConfig())
        session.submit(Request(request_id="r", prompt_token_ids=(1,)))
        with pytest.raises(EngineCrashed, match="IndexError: 17"):
            session.run(5)
        assert [one.token_id for one in session.observations() if isinstance(one, TokenSeen)] == [7]
        session.close()
    adapter.close()
