"""Random scenarios: everything that may happen to a scheduler, in logical time."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    AdapterError,
    AdapterLied,
    EngineCrashed,
    EngineTimeout,
    RecordingSession,
    Session,
    SessionRefused,
)
from pagetwin.conformance.adapters.watchdog import watched
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.checkers.all import JUDGED, check_all
from pagetwin.conformance.faults.campaign import Campaign
from pagetwin.conformance.goals import count_goals
from pagetwin.conformance.history import header
from pagetwin.conformance.lockstep import replay_history
from pagetwin.conformance.properties import CATALOGUE, Violation, violation
from pagetwin.conformance.scenario import PreemptEvent, Scenario
from pagetwin.conformance.strategies import scenarios
from pagetwin.conformance.suite.driving import NeverEnds, play, session_config
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.conformance.suite.stream import stream
from pagetwin.engine.trace import Record
from pagetwin.simulator.replica import Replica

NO_CRASH = "life.no-crash"
TIMEOUT_S = 60.0
"""For one scenario; on the executor without a model it takes milliseconds."""
MOST_REFUSED = 200
"""Scenarios in a row that an engine may refuse before the experiment gives up on it."""


@dataclass
class Played:
    """One scenario on one engine: what it did, and what is wrong with it."""

    scenario: Scenario
    records: Sequence[Record] = ()
    violations: list[Violation] = field(default_factory=list)


class RandomScenarios:
    """Judges an engine's records over random scenarios, by every checker and by the twin."""

    id = "scenarios"
    judges = (*JUDGED, "twin.lockstep", NO_CRASH, "life.ends")
    needs = frozenset({Flag.STEP_TRACE, Flag.POLICY, Flag.CANCEL})
    weight = 4.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        judged = tuple(
            name
            for name in self.judges
            if not adapter.capabilities().missing(CATALOGUE[name].needs)
        )
        done = refused = 0
        for scenario in stream(scenarios(), seed):
            if not budget.allows(done) or refused > MOST_REFUSED:
                return
            try:
                played = play_and_judge(fitted(scenario, adapter), adapter)
            except SessionRefused:
                refused += 1
                continue
            done, refused = done + 1, 0
            yield from evidence_of(played, judged)


def fitted(scenario: Scenario, adapter: Adapter) -> Scenario:
    """The scenario without what the engine does not offer."""
    can = adapter.capabilities()
    if not can.has(Flag.FAILING_ROWS):
        scenario = msgspec.structs.replace(scenario, failing_requests=())
    if not can.has(Flag.FORCE_PREEMPT):
        events = tuple(one for one in scenario.events if not isinstance(one, PreemptEvent))
        scenario = msgspec.structs.replace(scenario, events=events)
    return scenario


def play_and_judge(scenario: Scenario, adapter: Adapter) -> Played:
    """Plays the scenario in a session of its own and judges what it left.

    Raises SessionRefused if the engine cannot be opened so, AdapterLied if it claims records and
    has none, and AdapterError if it is gone.
    """
    if scenario.fault is not None:
        run = Campaign(adapter).judge(scenario)
        return Played(scenario, run.records, list(run.violations))
    played = Played(scenario)
    session = adapter.open(session_config(scenario))
    try:
        if not isinstance(session, RecordingSession):
            raise AdapterLied(
                f"{adapter.describe().name} claims {Flag.STEP_TRACE.value!r}, but its sessions "
                "have no records(); drop the claim or add the method"
            )
        played.violations += _play(scenario, session, adapter.describe().name)
        played.records = tuple(session.records())
    finally:
        session.close()
    if adapter.capabilities().has(Flag.POLICY):
        played.violations += check_all(played.records)
        played.violations += twin_differences(played.records)
    return played


def _play(scenario: Scenario, session: Session, engine: str) -> list[Violation]:
    """Plays it; what keeps it from its end is a finding, not the end of the run."""
    try:
        with watched(TIMEOUT_S, engine):
            play(scenario, session, timeout_s=TIMEOUT_S)
    except NeverEnds as error:
        broken = ("sched.progress", "life.ends")
        return [violation(name, -1, str(error)) for name in broken]
    except EngineTimeout as error:
        return [violation("life.ends", -1, str(error))]
    except EngineCrashed as error:
        return [crashed(error)]
    except AdapterError:
        raise
    except Exception as error:
        return [crash(error)]
    return []


def crash(error: Exception) -> Violation:
    """What an engine raised, and where."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = ""
    if place is not None:
        code = place.tb_frame.f_code
        where = f"{code.co_filename.rpartition('/')[2]}:{place.tb_lineno} in {code.co_name}"
    text = f"the engine raised {type(error).__name__}: {error}"
    return violation(NO_CRASH, -1, text, where=where)


def crashed(error: EngineCrashed) -> Violation:
    """What an adapter says that its engine raised."""
    return violation(NO_CRASH, -1, f"the engine raised {error}")


def twin_differences(records: Sequence[Record]) -> list[Violation]:
    """What a fresh twin does otherwise than the history, if anything."""
    started = header(records)
    try:
        report = replay_history(records, Replica(started.cache, started.scheduler))
    except Exception as error:
        # A history that no right engine writes may ask of the twin what cannot be.
        text = f"the twin cannot follow the history ({type(error).__name__}: {error})"
        return [violation("twin.lockstep", -1, text)]
    if report.difference is None:
        return []
    return [violation("twin.lockstep", report.steps, report.difference.explain())]


def evidence_of(played: Played, judged: Sequence[str]) -> Iterator[Evidence]:
    """One piece of evidence on each property that the scenario was judged by."""
    goals: Counter[str] = count_goals(played.records)
    first: dict[str, Violation] = {}
    for one in played.violations:
        first.setdefault(one.property_id, one)
    for property_id in judged:
        found = first.get(property_id)
        yield Evidence(
            property_id=property_id,
            goals={goal: goals[goal] for goal in CATALOGUE[property_id].goals},
            violation=found,
            scenario=played.scenario if found else None,
            records=tuple(played.records) if found else (),
        )
