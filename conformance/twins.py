"""The engine's scheduler and its twin, compared on one scenario, with every checker beside them."""

from typing import NamedTuple

from pagetwin.conformance.answers import CompletedAnswers
from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.comparison import LockstepReport
from pagetwin.conformance.lockstep import replay_history, run_lockstep
from pagetwin.conformance.properties import Violation
from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.scripted import ScriptedAnswers
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import Executor, SteppingScheduler
from pagetwin.engine.trace import HistoryWriter, Record
from pagetwin.simulator.replica import Replica


class Verdict(NamedTuple):
    """What a scenario showed: the live comparison, the same from the history, the checkers."""

    lockstep: LockstepReport
    replay: LockstepReport
    violations: list[Violation]
    records: list[Record]

    @property
    def holds(self) -> bool:
        return self.lockstep.equal and self.replay.equal and not self.violations

    @property
    def broken(self) -> tuple[str, ...]:
        """Ids of the properties that do not hold, each once, those of the checkers first."""
        found = dict.fromkeys(one.property_id for one in self.violations)
        if not (self.lockstep.equal and self.replay.equal):
            found["twin.lockstep"] = None
        return tuple(found)

    def explain(self) -> str:
        reports = [f"live: {self.lockstep.explain()}", f"replay: {self.replay.explain()}"]
        return "\n".join([*reports, *map(str, self.violations)])


def fingerprint_executor(scenario: Scenario) -> Executor:
    """The executor without a model, with stop strings and selections added to its results; or the
    one that follows the scenario's script, if it has one."""
    if scenario.outputs:
        return ScriptedAnswers(scenario.outputs, max_model_len=scenario.scheduler.max_model_len)
    executor = FingerprintExecutor(scenario.cache, vocab_size=scenario.vocab_size)
    return CompletedAnswers(
        executor,
        max_model_len=scenario.scheduler.max_model_len,
        failing=scenario.failing_requests,
    )


def judge_scenario(
    scenario: Scenario,
    *,
    left: SteppingScheduler | None = None,
    right: SteppingScheduler | None = None,
) -> Verdict:
    """Runs both sides in lockstep, replays the history on a fresh twin, and runs the checkers.

    `left` is a fresh engine scheduler if not given, `right` a fresh twin. The replay is left out
    (it repeats the live report) where the live comparison has found a difference.
    """
    cache, limits = scenario.cache, scenario.scheduler
    history = HistoryWriter(keep=True, with_block_tables=True)
    lockstep = run_lockstep(
        scenario,
        left or Scheduler(cache, limits),
        right or Replica(cache, limits),
        fingerprint_executor(scenario),
        history=history,
    )
    replay = lockstep
    if lockstep.equal:
        replay = replay_history(history.records, Replica(cache, limits))
    return Verdict(lockstep, replay, check_all(history.records), history.records)
