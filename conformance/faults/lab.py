"""The lab: a small workload on an engine, driven step by step, under a fault or without one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    AdapterError,
    AdapterLied,
    EngineCrashed,
    EngineTimeout,
    FaultySession,
    PreemptingSession,
    ResettableSession,
    SteppingSession,
)
from pagetwin.conformance.adapters.watchdog import watched
from pagetwin.conformance.experiments.asking import Answer, answers_of
from pagetwin.conformance.faults.fault import AbortAt, AnyFault, PreemptedAt, ResultsLate
from pagetwin.conformance.scenario import Scenario, SubmitEvent
from pagetwin.conformance.suite.driving import session_config
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import StepPlan
from pagetwin.engine.trace import AbortRecord, PlanRecord, Record, ResetRecord

AGAIN = "-again"
"""What is appended to a request's name when the fault is gone."""
MOST_STEPS = 2000
"""More than any run of the workload needs; a run that takes more hangs."""
TIMEOUT_S = 120.0
LATE = 0.6
"""How probably a late result waits for another turn."""


@dataclass
class Outcome:
    """What a run left behind."""

    answers: dict[str, Answer] = field(default_factory=dict)
    """By sequence id."""
    steps: int = 0
    """Turns of the driver's loop."""
    records: Sequence[Record] = ()
    num_first_records: int = 0
    """Records of the first time; those of the second follow."""
    struck: int = 0
    hit: frozenset[str] = frozenset()
    """Requests that the fault may have ended."""
    accepted_twice: bool = False
    num_kept: int = 0
    """What the executor remembers at the end, where it says."""
    reset: ResetRecord | None = None
    """The end: nothing lives, and the cache is to be forgotten."""
    broken: list[str] = field(default_factory=list)
    """What must never happen: the engine raised something, or did not come to an end."""

    @property
    def first_records(self) -> Sequence[Record]:
        """Those of the first time, with the fault."""
        return self.records[: self.num_first_records]

    @property
    def plans(self) -> list[StepPlan]:
        """The plans of the first time, without what the requests ask for."""
        plans = (one.plan for one in self.first_records if isinstance(one, PlanRecord))
        return [msgspec.structs.replace(plan, new_requests=()) for plan in plans]


class Watcher:
    """Looks on, between a driver's turns; one that has something to do overrides a method."""

    def before(self, session: SteppingSession) -> None:
        """Before a turn: no step is being planned or computed."""

    def after(self, session: SteppingSession) -> None:
        """After it."""


def run(adapter: Adapter, scenario: Scenario, watcher: Watcher | None = None) -> Outcome:
    """Plays the scenario's requests under its fault; then once more, under other names and on the
    same engine, with the fault gone: what it left in the cache shows then.

    Raises SessionRefused if the engine cannot be opened so, AdapterLied if its sessions lack what
    it claims, AdapterError if it is gone.
    """
    outcome = Outcome()
    name = adapter.describe().name
    session = adapter.open(session_config(scenario))
    try:
        if not (isinstance(session, SteppingSession) and isinstance(session, ResettableSession)):
            raise AdapterLied(f"{name} claims control over its steps, but its sessions lack it")
        with watched(TIMEOUT_S, name):
            _Run(session, scenario, outcome, watcher or Watcher()).play()
    except (EngineTimeout, EngineCrashed) as error:
        outcome.broken.append(str(error))
    except AdapterError:
        raise
    except Exception as error:
        # Whatever the engine raises is what we are after, not the end of the campaign.
        outcome.broken.append(f"the engine raised {type(error).__name__}: {error}")
    finally:
        if isinstance(session, SteppingSession):
            outcome.records = list(session.records())
        seen = answers_of(session.observations())
        outcome.answers = {
            sequence_id(request_id, index): answer
            for request_id, samples in seen.items()
            if request_id != _FLUSH.request_id
            for index, answer in samples.items()
        }
        session.close()
    return outcome


class _Run:
    """One life of an engine."""

    def __init__(
        self,
        session: SteppingSession,
        scenario: Scenario,
        outcome: Outcome,
        watcher: Watcher,
    ) -> None:
        self._session = session
        self._watcher = watcher
        self._scenario = scenario
        self._outcome = outcome
        self._fault: AnyFault | None = scenario.fault
        self._most_in_flight = 1 + scenario.scheduler.async_scheduling
        self._num_in_flight = 0
        seed = scenario.fault.seed if isinstance(scenario.fault, ResultsLate) else 0
        self._random = Random(seed)

    def play(self) -> None:
        session, outcome = self._session, self._outcome
        strikes = session.strikes if isinstance(session, FaultySession) else None
        self._drive("")
        outcome.num_first_records = len(session.records())
        if strikes is not None:
            outcome.struck, outcome.hit = strikes.count, frozenset(strikes.hit)
            outcome.accepted_twice = strikes.accepted_twice
            strikes.is_over = True
        elif isinstance(self._fault, AbortAt):
            outcome.hit = frozenset({self._fault.request_id})
        self._fault = None
        self._drive(AGAIN)
        assert isinstance(session, ResettableSession)
        session.reset_prefix_cache()
        last = session.records()[-1]
        assert isinstance(last, ResetRecord)
        outcome.reset = last
        if isinstance(session, FaultySession):
            # One request more, so that the executor is told what to forget; it may keep that one.
            session.submit(_FLUSH)
            session.run(TIMEOUT_S)
            outcome.num_kept = session.num_kept()

    def _drive(self, suffix: str) -> None:
        requests = self._scenario.requests_by_id()
        due = sorted(
            (event.round, place, requests[event.request_id])
            for place, event in enumerate(self._scenario.events)
            if isinstance(event, SubmitEvent)
        )
        number = 0
        while due or self._session.has_unfinished_requests():
            while due and due[0][0] <= number:
                request = due.pop(0)[2]
                name = f"{request.request_id}{suffix}"
                self._session.submit(msgspec.structs.replace(request, request_id=name))
            self._watcher.before(self._session)
            self._turn(number)
            self._watcher.after(self._session)
            number += 1
            if number > MOST_STEPS:
                self._outcome.broken.append(
                    f"it does not end: {number} steps, and requests that live"
                )
                return
        self._outcome.steps = max(self._outcome.steps, number)

    def _turn(self, number: int) -> None:
        """Starts as many steps as may be in flight, and lets the oldest take effect."""
        fault = self._fault
        event = fault if isinstance(fault, AbortAt | PreemptedAt) else None
        if event is not None and event.number != number:
            event = None
        if event is not None and not event.in_flight:
            self._strike(event)
        started = self._start()
        if event is not None and event.in_flight:
            self._strike(event)
        elif isinstance(fault, ResultsLate):
            self._outcome.struck += self._num_in_flight > 1
            may_wait = started and self._num_in_flight < self._most_in_flight
            if may_wait and self._random.random() < LATE:
                return
        elif started and self._num_in_flight < self._most_in_flight:
            self._start()
        if self._num_in_flight:
            self._num_in_flight -= self._session.finish_step()

    def _start(self) -> bool:
        if self._num_in_flight >= self._most_in_flight:
            return False
        started = self._session.start_step()
        self._num_in_flight += started
        return started

    def _strike(self, event: AbortAt | PreemptedAt) -> None:
        """Does what the driver of an engine may do."""
        if isinstance(event, PreemptedAt):
            assert isinstance(self._session, PreemptingSession)
            self._outcome.struck += self._session.force_preempt(event.request_id)
            return
        self._session.cancel(event.request_id)
        last = self._session.records()[-1]
        self._outcome.struck += isinstance(last, AbortRecord) and last.found


_FLUSH = Request(
    request_id="flush",
    prompt_token_ids=(0,),
    sampling_params=SamplingParams(max_tokens=1, ignore_eos=True, temperature=0.0),
)
