"""An answer ends at the exact token; each way to miss it is found."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import pytest

from pagetwin.conformance.adapters.protocol import Adapter, SessionConfig
from pagetwin.conformance.experiments.ends import CANCEL, LIMITS, STOPS, Ends
from pagetwin.conformance.observation import AnyObservation, Cancelled, Finished, TokenSeen
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.engine.request import Request

if TYPE_CHECKING:
    from tests.conformance.experiments.conftest import Change

EvidenceOf = Callable[..., list[Evidence]]
Shown = list[AnyObservation]


def last_token_lost(
    config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
) -> Shown:
    """Of requests with a limit of 3."""
    short = {r.request_id for r in requests if r.sampling_params.max_tokens == 3}
    last = {o.request_id: i for i, o in enumerate(seen) if isinstance(o, TokenSeen)}
    lost = {last[name] for name in short & set(last)}
    return [one for i, one in enumerate(seen) if i not in lost]


def wrong_reason(
    config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
) -> Shown:
    return [
        msgspec.structs.replace(one, reason="length") if isinstance(one, Finished) else one
        for one in seen
    ]


def one_token_late(
    config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
) -> Shown:
    """One more token behind the stop token."""
    shown: Shown = []
    for one in seen:
        if isinstance(one, Finished) and one.reason == "stop":
            shown.append(TokenSeen(request_id=one.request_id, token_id=1))
        shown.append(one)
    return shown


def others_disturbed(
    config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
) -> Shown:
    """From the first client that hangs up on, every token is another one."""
    first = next((i for i, one in enumerate(seen) if isinstance(one, Cancelled)), len(seen))
    return [
        msgspec.structs.replace(one, token_id=one.token_id ^ 1)
        if i > first and isinstance(one, TokenSeen)
        else one
        for i, one in enumerate(seen)
    ]


def test_a_right_engine_passes(fingerprint: Adapter, evidence_of: EvidenceOf) -> None:
    pieces = evidence_of(Ends(), fingerprint, rounds=8)
    assert [piece.violation for piece in pieces if piece.violation is not None] == []
    for property_id, goal in ((STOPS, "ends by stop"), (CANCEL, "cancelled in decode")):
        assert sum(p.goals.get(goal, 0) for p in pieces if p.property_id == property_id) >= 8


@pytest.mark.parametrize(
    ("change", "property_id"),
    [
        (last_token_lost, LIMITS),
        (wrong_reason, STOPS),
        (one_token_late, STOPS),
        (others_disturbed, CANCEL),
    ],
)
def test_an_end_at_the_wrong_place_is_found(
    change: "Change",
    property_id: str,
    fingerprint: Adapter,
    changed: Callable[[Adapter, "Change"], Adapter],
    evidence_of: EvidenceOf,
) -> None:
    pieces = evidence_of(Ends(), changed(fingerprint, change))
    broken = {piece.property_id for piece in pieces if piece.violation is not None}
    assert broken == {property_id}
