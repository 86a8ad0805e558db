"""What a client checks: each way in which an answer may be wrong is noticed, by its property."""

from collections.abc import Callable

import msgspec
import pytest

from pagetwin.conformance.adapters.protocol import SessionConfig
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.checkers.client import check_client, count_client_goals
from pagetwin.conformance.observation import (
    AnyObservation,
    Cancelled,
    Finished,
    RequestObservation,
    Submitted,
    TokenSeen,
)
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

MAX_LEN = 128


def request(name: str, **params: object) -> Request:
    wanted = {"max_tokens": 6, "ignore_eos": True} | params
    return Request(
        request_id=name,
        prompt_token_ids=(5, 6, 7),
        sampling_params=SamplingParams(**wanted),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def seen() -> tuple[list[AnyObservation], dict[str, Request]]:
    """One request that ends by length, one by a stop token, one that is cancelled."""
    session = make_adapter("fingerprint:").open(SessionConfig())
    asked = {
        "length": request("length"),
        "stop": request("stop", stop_token_ids=tuple(range(0, 64, 3)), max_tokens=40),
        "cancel": request("cancel", max_tokens=30),
    }
    for name, one in asked.items():
        session.submit(one, cancel_after=3 if name == "cancel" else None)
    session.run(60)
    return list(session.observations()), asked


def test_right_answers_break_nothing_and_meet_every_goal(
    seen: tuple[list[AnyObservation], dict[str, Request]],
) -> None:
    observed, asked = seen
    assert not check_client(observed, asked, max_model_len=MAX_LEN)
    goals = count_client_goals(observed, asked)
    assert goals["ends by length"]
    assert goals["ends by stop token"]
    assert goals["cancelled while running"]


def named(one: AnyObservation, name: str) -> bool:
    return isinstance(one, RequestObservation) and one.request_id == name


Change = Callable[[list[AnyObservation]], list[AnyObservation]]


def without(kind: type, name: str) -> Change:
    return lambda all_seen: [
        one for one in all_seen if not (isinstance(one, kind) and named(one, name))
    ]


def with_last(one: AnyObservation) -> Change:
    return lambda all_seen: [*all_seen, one]


def twice(kind: type, name: str) -> Change:
    return lambda all_seen: [
        copy
        for one in all_seen
        for copy in ([one, one] if isinstance(one, kind) and named(one, name) else [one])
    ]


def ends_as(name: str, reason: str) -> Change:
    return lambda all_seen: [
        msgspec.structs.replace(one, reason=reason)
        if isinstance(one, Finished) and named(one, name)
        else one
        for one in all_seen
    ]


def lose_a_token(all_seen: list[AnyObservation]) -> list[AnyObservation]:
    place = next(
        i for i, one in enumerate(all_seen) if isinstance(one, TokenSeen) and named(one, "length")
    )
    return [*all_seen[:place], *all_seen[place + 1 :]]


def go_on_after_the_stop(all_seen: list[AnyObservation]) -> list[AnyObservation]:
    end = next(
        i for i, one in enumerate(all_seen) if isinstance(one, Finished) and named(one, "stop")
    )
    return [*all_seen[:end], TokenSeen(request_id="stop", token_id=1), *all_seen[end:]]


CHANGES: dict[str, tuple[str, Change]] = {
    "an end is not told": ("life.exactly-once", without(Finished, "length")),
    "an end is told twice": ("life.exactly-once", twice(Finished, "length")),
    "a submission is not told": ("life.exactly-once", without(Submitted, "length")),
    "somebody else's request": (
        "life.exactly-once",
        with_last(Finished(request_id="ghost", reason="stop")),
    ),
    "a token after the end": (
        "life.silent-after-end",
        with_last(TokenSeen(request_id="length", token_id=1)),
    ),
    "a token after the cancellation": (
        "life.silent-after-end",
        with_last(TokenSeen(request_id="cancel", token_id=1)),
    ),
    "tokens twice": ("life.length", twice(TokenSeen, "length")),
    "a token is lost": ("life.length", lose_a_token),
    "a length that is called a stop": ("life.stop-token", ends_as("stop", "length")),
    "on after the stop token": ("life.stop-token", go_on_after_the_stop),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_wrong_answer_is_noticed(
    seen: tuple[list[AnyObservation], dict[str, Request]], name: str
) -> None:
    property_id, change = CHANGES[name]
    observed, asked = seen
    changed = change(observed)
    assert changed != observed
    found = {one.property_id for one in check_client(changed, asked, max_model_len=MAX_LEN)}
    if name == "a length that is called a stop":
        # A stop that is reported as a length is cut short.
        assert "life.length" in found
    else:
        assert property_id in found


def test_a_cancellation_that_is_not_told_leaves_a_request_without_an_end(
    seen: tuple[list[AnyObservation], dict[str, Request]],
) -> None:
    observed, asked = seen
    found = check_client(without(Cancelled, "cancel")(observed), asked, max_model_len=MAX_LEN)
    assert {one.property_id for one in found} == {"life.exactly-once"}
