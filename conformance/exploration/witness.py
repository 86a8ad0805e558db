"""Witnesses: a path through an exploration as a scenario that any driver replays."""

from collections import defaultdict
from collections.abc import Iterable

from pagetwin.conformance.exploration.actions import (
    Abort,
    Action,
    Close,
    Plan,
    Preempt,
    Reset,
    Submit,
    request_of,
)
from pagetwin.conformance.exploration.scope import EOS, Scope
from pagetwin.conformance.scenario import (
    AbortEvent,
    AnyEvent,
    PreemptEvent,
    ResetEvent,
    ResultEvent,
    Scenario,
    ScenarioRequest,
    ScriptedOutput,
    SubmitEvent,
)
from pagetwin.engine.request import Request


def scenario_of(scope: Scope, path: Iterable[Action], *, note: str = "") -> Scenario:
    """The path's events in rounds, and its tokens as a script.

    A round plans once and, at its end, closes the step that a driver would not wait with
    (conformance/scenario.py); every other result is an event of its own.
    """
    writer = _Writer(scope)
    for action in path:
        writer.add(action)
    return Scenario(
        cache=scope.cache,
        scheduler=scope.scheduler,
        requests=tuple(ScenarioRequest(request=request) for request in writer.requests),
        events=tuple(writer.events),
        vocab_size=EOS + 1,
        outputs=tuple(writer.outputs()),
        note=note,
    )


class _Writer:
    def __init__(self, scope: Scope) -> None:
        self.requests: list[Request] = []
        self.events: list[AnyEvent] = []
        self._scope = scope
        self._round = 0
        self._planned = False
        """Whether the round's plan is made."""
        self._in_flight = 0
        self._closes_itself = False
        """Whether the driver closes a step when the round ends."""
        self._endings: dict[str, list[str]] = defaultdict(list)

    def add(self, action: Action) -> None:
        match action:
            case Submit():
                self.requests.append(request_of(action, len(self.requests), self._scope))
                self._event(SubmitEvent, request_id=self.requests[-1].request_id)
            case Abort(request_id):
                self._event(AbortEvent, request_id=request_id)
            case Preempt(request_id):
                self._event(PreemptEvent, request_id=request_id)
            case Reset():
                self._event(ResetEvent)
            case Plan():
                self._plan()
            case Close():
                self._close(action)

    def outputs(self) -> Iterable[ScriptedOutput]:
        """Each sequence's tokens; those of one that was given none are left out."""
        for seq_id, endings in self._endings.items():
            token = int(seq_id.rpartition("/")[2])
            tokens = [EOS if one == "stop" else token for one in endings if one != "fail"]
            yield ScriptedOutput(
                seq_id=seq_id, token_ids=tuple(tokens), then_fails=endings[-1] == "fail"
            )

    def _event(self, kind: type[AnyEvent], **fields: str) -> None:
        self.events.append(kind(round=self._round, in_flight=self._planned, **fields))

    def _plan(self) -> None:
        if self._planned:
            self._next_round()
        self._closes_itself = bool(self._in_flight) or not self._scope.scheduler.async_scheduling
        self._in_flight += 1
        self._planned = True

    def _close(self, action: Close) -> None:
        for seq_id, ending in zip(action.due, action.endings, strict=True):
            endings = self._endings[seq_id]
            # What comes after the end is a late row, which counts for nothing (P5.3c).
            if not endings or endings[-1] == "go":
                endings.append(ending)
        if self._planned and self._closes_itself:
            self._next_round()
        else:
            self._event(ResultEvent)
        self._in_flight -= 1

    def _next_round(self) -> None:
        self._round += 1
        self._planned = False
