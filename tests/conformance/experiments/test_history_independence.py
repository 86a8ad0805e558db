"""Engines that answer alike in all histories pass; each that does not is found by its property."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import pytest

from pagetwin.conformance.adapters.protocol import Adapter, SessionConfig
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.capability import Capabilities, Flag, Support
from pagetwin.conformance.experiments.asking import NO_ANSWER, Outcome, setting_for
from pagetwin.conformance.experiments.courses import make_courses
from pagetwin.conformance.experiments.history_independence import (
    HistoryIndependence,
    Tally,
    judge_course,
)
from pagetwin.conformance.observation import AnyObservation, CachedTokens, TokenSeen
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.engine.request import Request

if TYPE_CHECKING:
    from tests.conformance.experiments.conftest import Change

EvidenceOf = Callable[..., list[Evidence]]
Changed = Callable[[Adapter, "Change"], Adapter]
Seen = Sequence[AnyObservation]


def broken(pieces: list[Evidence]) -> set[str]:
    return {piece.property_id for piece in pieces if piece.violation is not None}


def with_other_tokens(observed: Seen, request_ids: set[str]) -> list[AnyObservation]:
    """The last token of these requests replaced by another."""
    last = {one.request_id: i for i, one in enumerate(observed) if isinstance(one, TokenSeen)}
    shown = list(observed)
    for request_id in request_ids & set(last):
        seen = shown[last[request_id]]
        assert isinstance(seen, TokenSeen)
        shown[last[request_id]] = msgspec.structs.replace(seen, token_id=seen.token_id ^ 1)
    return shown


@pytest.mark.parametrize("spec", ["fingerprint:", "sim:"])
def test_right_engines_pass_and_every_course_shows_what_it_is_about(
    spec: str, evidence_of: EvidenceOf
) -> None:
    pieces = evidence_of(HistoryIndependence(), make_adapter(spec), rounds=4)
    assert broken(pieces) == set()
    assert [piece.undecided for piece in pieces if piece.undecided] == []
    goals: Counter[str] = Counter()
    for piece in pieces:
        goals.update(piece.goals)
    for goal in ("full hits", "evictions", "recompute preemptions", "swap preemptions"):
        assert goals[goal] > 0, goal


@pytest.mark.parametrize("status", ["yes", "conditional"])
def test_copies_are_asked_of_samples_only_where_an_engine_always_copies(
    status: Literal["yes", "conditional"], fingerprint: Adapter
) -> None:
    setting = setting_for(fingerprint)
    [forked] = [one for one in make_courses(setting, 1) if one.property_id == "cow.fork-parity"]
    without_copies = Outcome(answers={}, goals=Counter(), cached_tokens={})
    baseline = {one.probe: NO_ANSWER for one in forked.asked() if one.probe is not None}
    support = fingerprint.capabilities().support | {Flag.COPIES: Support(status, "some models")}
    tally = Tally()
    judge_course(forked, without_copies, baseline, Capabilities(support), "float32", tally)
    assert tally.examples > 0
    expected = ["'forked' showed no copy-on-write copies"] if status == "yes" else []
    assert tally.unmet == expected


def test_a_hit_that_changes_a_token_breaks_parity(
    fingerprint: Adapter, changed: Changed, evidence_of: EvidenceOf
) -> None:
    def stale(config: SessionConfig, requests: list[Request], seen: Seen) -> list[AnyObservation]:
        hits = {one.request_id for one in seen if isinstance(one, CachedTokens) and one.count}
        return with_other_tokens(seen, hits)

    found = broken(evidence_of(HistoryIndependence(), changed(fingerprint, stale)))
    assert {"cache.hit-miss-parity", "cache.ABA"} <= found


def test_an_answer_that_depends_on_the_pool_breaks_independence(
    fingerprint: Adapter, changed: Changed, evidence_of: EvidenceOf
) -> None:
    def tight(config: SessionConfig, requests: list[Request], seen: Seen) -> list[AnyObservation]:
        assert config.scheduler is not None
        is_swapping = config.scheduler.preemption_mode == "swap"
        names = {request.request_id for request in requests}
        return with_other_tokens(seen, names if is_swapping else set())

    pieces = evidence_of(HistoryIndependence(), changed(fingerprint, tight))
    assert broken(pieces) == {"iso.history-independence"}
    first = next(piece.violation for piece in pieces if piece.violation is not None)
    assert "preempted by swap" in first.message
    assert dict(first.witness).keys() == {"request", "prompt", "alone", "here"}


def test_a_cache_that_never_hits_is_a_noop(
    fingerprint: Adapter, changed: Changed, evidence_of: EvidenceOf
) -> None:
    def never(config: SessionConfig, requests: list[Request], seen: Seen) -> list[AnyObservation]:
        return [
            msgspec.structs.replace(one, count=0) if isinstance(one, CachedTokens) else one
            for one in seen
        ]

    found = broken(evidence_of(HistoryIndependence(), changed(fingerprint, never)))
    assert found == {"cache.not-a-noop"}


def test_a_request_that_never_answers_is_a_difference(
    fingerprint: Adapter, changed: Changed, evidence_of: EvidenceOf
) -> None:
    def silent(config: SessionConfig, requests: list[Request], seen: Seen) -> list[AnyObservation]:
        if len({request.arrival_s for request in requests}) < 12:
            return list(seen)
        return [one for one in seen if not isinstance(one, TokenSeen)]

    pieces = evidence_of(HistoryIndependence(), changed(fingerprint, silent))
    assert "iso.history-independence" in broken(pieces)


def test_equal_seeds_give_equal_evidence(fingerprint: Adapter, evidence_of: EvidenceOf) -> None:
    first, second = (evidence_of(HistoryIndependence(), fingerprint, seed=5) for _ in range(2))
    assert first == second
