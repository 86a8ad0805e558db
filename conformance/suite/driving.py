"""How a scenario is played on a session, with or without control over its steps."""

from collections.abc import Mapping

from pagetwin.conformance.adapters.protocol import (
    ResettableSession,
    Session,
    SessionConfig,
    SteppingSession,
)
from pagetwin.conformance.scenario import AbortEvent, AnyEvent, ResetEvent, Scenario
from pagetwin.engine.request import Request


class NeverEnds(Exception):
    """A scenario was not over after the rounds within which it must be (Scenario.max_rounds)."""


def session_config(scenario: Scenario) -> SessionConfig:
    """The session that a scenario asks for."""
    return SessionConfig(
        cache=scenario.cache,
        scheduler=scenario.scheduler,
        vocab_size=scenario.vocab_size,
        failing_requests=scenario.failing_requests,
    )


def play(scenario: Scenario, session: Session, *, timeout_s: float) -> None:
    """Plays the scenario to its end.

    With control over the steps, events come in their rounds. Without it there are no rounds: each
    round's events come in order, and whatever is due runs before a reset and at the end.
    Raises NeverEnds, or what the session raises.
    """
    requests = scenario.requests_by_id()
    if isinstance(session, SteppingSession):
        _play_rounds(scenario, session, requests)
        return
    for event in sorted(scenario.events, key=lambda one: (one.round, one.in_flight)):
        if isinstance(event, ResetEvent):
            session.run(timeout_s)
        _apply(event, session, requests)
    session.run(timeout_s)


def _play_rounds(
    scenario: Scenario, session: SteppingSession, requests: Mapping[str, Request]
) -> None:
    asynchronous = scenario.scheduler.async_scheduling
    in_flight = 0
    for number in range(scenario.max_rounds + 1):
        if number > scenario.last_round and not session.has_unfinished_requests():
            return
        waited_for = in_flight
        for event in scenario.events_at(number, in_flight=False):
            _apply(event, session, requests)
        had_work = session.has_unfinished_requests()
        started = session.start_step()
        in_flight += started
        if had_work and not started and not waited_for:
            raise NeverEnds(f"in round {number} nothing is planned and nothing in flight")
        for event in scenario.events_at(number, in_flight=True):
            _apply(event, session, requests)
        if in_flight and (waited_for or not asynchronous):
            in_flight -= session.finish_step()
    raise NeverEnds(f"requests are unfinished after {scenario.max_rounds} rounds")


def _apply(event: AnyEvent, session: Session, requests: Mapping[str, Request]) -> None:
    if isinstance(event, AbortEvent):
        session.cancel(event.request_id)
    elif isinstance(event, ResetEvent):
        if isinstance(session, ResettableSession):
            session.reset_prefix_cache()
    else:
        session.submit(requests[event.request_id])
