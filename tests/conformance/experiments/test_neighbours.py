"""What a neighbour contains must not show; an engine in which it does is found."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from pagetwin.conformance.adapters.protocol import Adapter, SessionConfig
from pagetwin.conformance.experiments.asking import setting_for
from pagetwin.conformance.experiments.courses import batch_course
from pagetwin.conformance.experiments.neighbours import Neighbours, with_other_bystanders
from pagetwin.conformance.observation import AnyObservation, TokenSeen
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.engine.request import Request

if TYPE_CHECKING:
    from tests.conformance.experiments.conftest import Change

EvidenceOf = Callable[..., list[Evidence]]


def test_a_right_engine_passes(fingerprint: Adapter, evidence_of: EvidenceOf) -> None:
    pieces = evidence_of(Neighbours(), fingerprint, rounds=10)
    assert all(piece.violation is None for piece in pieces)
    assert sum(piece.examples for piece in pieces) >= 50


def test_a_leak_of_one_neighbours_token_is_found(
    fingerprint: Adapter,
    changed: Callable[[Adapter, "Change"], Adapter],
    evidence_of: EvidenceOf,
) -> None:
    def leak(
        config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
    ) -> list[AnyObservation]:
        secret = sum(sum(request.prompt_token_ids) for request in requests)
        return [
            msgspec.structs.replace(one, token_id=one.token_id ^ (secret % 2))
            if isinstance(one, TokenSeen)
            else one
            for one in seen
        ]

    pieces = evidence_of(Neighbours(), changed(fingerprint, leak), rounds=12)
    assert any(piece.violation is not None for piece in pieces)


def test_only_the_bystanders_tokens_change(fingerprint: Adapter) -> None:
    setting = setting_for(fingerprint)
    course = batch_course(setting, 3)
    other = with_other_bystanders(course, setting, 3)
    pairs = list(zip(course.asked(), other.asked(), strict=True))
    assert {one.probe is None for one, _ in pairs} == {True, False}
    for one, two in pairs:
        assert one.request.request_id == two.request.request_id
        tokens = one.request.prompt_token_ids, two.request.prompt_token_ids
        assert len(tokens[0]) == len(tokens[1])
        if one.probe is None:
            assert all(a != b for a, b in zip(*tokens, strict=True))
        else:
            assert one == two
