"""How a scenario is played on a session, with or without control over its steps."""

from collections.abc import Mapping

from pagetwin.conformance.adapters.protocol import (
    PreemptingSession,
    ResettableSession,
    Session,
    SessionConfig,
    SteppingSession,
)
from pagetwin.conformance.scenario import (
    AbortEvent,
    AnyEvent,
    PreemptEvent,
    ResetEvent,
    ResultEvent,
    Scenario,
    SubmitEvent,
)
from pagetwin.engine.request import Request


class NeverEnds(Exception):
    """A scenario was not over after the rounds within which it must be (Scenario.max_rounds)."""


def session_config(scenario: Scenario) -> SessionConfig:
    """The session that a scenario asks for."""
    fault = scenario.fault
    return SessionConfig(
        cache=scenario.cache,
        scheduler=scenario.scheduler,
        vocab_size=scenario.vocab_size,
        failing_requests=scenario.failing_requests,
        fault=fault if fault is not None and fault.is_injected else None,
        outputs=scenario.outputs,
    )


def play(scenario: Scenario, session: Session, *, timeout_s: float) -> None:
    """Plays the scenario to its end.

    With control over the steps, events come in their rounds. Without it there are no rounds:
    requests come in the order of theirs, an abort r rounds after its submission becomes a client
    that gives up after r tokens, whatever is due runs before a reset and at the end, and nobody is
    forced to be preempted.
    Raises NeverEnds, or what the session raises.
    """
    if isinstance(session, SteppingSession):
        _Rounds(scenario, session).play()
        return
    requests = scenario.requests_by_id()
    patience = _patience(scenario)
    for event in sorted(scenario.events, key=lambda one: (one.round, one.in_flight)):
        if isinstance(event, SubmitEvent):
            request_id = event.request_id
            session.submit(requests[request_id], cancel_after=patience.get(request_id))
        elif isinstance(event, ResetEvent):
            session.run(timeout_s)
            _apply(event, session, requests)
    session.run(timeout_s)


def _patience(scenario: Scenario) -> dict[str, int]:
    """Rounds from each aborted request's submission to its first abort after that."""
    submitted = {e.request_id: e.round for e in scenario.events if isinstance(e, SubmitEvent)}
    patience: dict[str, int] = {}
    for event in scenario.events:
        if isinstance(event, AbortEvent) and event.request_id in submitted:
            waited = event.round - submitted[event.request_id]
            if waited >= 0:
                before = patience.get(event.request_id, waited)
                patience[event.request_id] = min(before, waited)
    return patience


class _Rounds:
    """Rounds as conformance/scenario.py explains them."""

    def __init__(self, scenario: Scenario, session: SteppingSession) -> None:
        self._scenario = scenario
        self._session = session
        self._requests = scenario.requests_by_id()
        self._num_in_flight = 0

    def play(self) -> None:
        scenario = self._scenario
        for number in range(scenario.max_rounds + 1):
            if number > scenario.last_round and not self._session.has_unfinished_requests():
                return
            self._round(number)
        raise NeverEnds(f"requests are unfinished after {scenario.max_rounds} rounds")

    def _round(self, number: int) -> None:
        self._events(number, in_flight=False)
        waited_for = self._num_in_flight
        had_work = self._session.has_unfinished_requests()
        started = self._session.start_step()
        self._num_in_flight += started
        if had_work and not started and not waited_for:
            raise NeverEnds(f"in round {number} nothing is planned and nothing in flight")
        self._events(number, in_flight=True)
        if self._num_in_flight and (waited_for or not self._scenario.scheduler.async_scheduling):
            self._num_in_flight -= self._session.finish_step()

    def _events(self, number: int, *, in_flight: bool) -> None:
        for event in self._scenario.events_at(number, in_flight=in_flight):
            if isinstance(event, ResultEvent):
                self._num_in_flight -= self._session.finish_step()
            else:
                _apply(event, self._session, self._requests)


def _apply(event: AnyEvent, session: Session, requests: Mapping[str, Request]) -> None:
    if isinstance(event, SubmitEvent):
        session.submit(requests[event.request_id])
    elif isinstance(event, AbortEvent):
        session.cancel(event.request_id)
    elif isinstance(event, PreemptEvent) and isinstance(session, PreemptingSession):
        session.force_preempt(event.request_id)
    elif isinstance(event, ResetEvent) and isinstance(session, ResettableSession):
        session.reset_prefix_cache()
