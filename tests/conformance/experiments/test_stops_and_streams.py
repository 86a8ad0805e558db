"""An answer stops where its longer form says, and pieces add up; each way to miss it is found."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import pytest

from pagetwin.conformance.adapters.protocol import Adapter, SessionConfig
from pagetwin.conformance.experiments.stops import EOS, MINIMUM, STRINGS, Stops
from pagetwin.conformance.experiments.streams import STREAMS, Streams
from pagetwin.conformance.observation import (
    AnyObservation,
    Finished,
    TextSeen,
    TokenSeen,
    pieces_of,
)
from pagetwin.conformance.properties import CATALOGUE
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Experiment
from pagetwin.conformance.tiny_tokenizer import TinyTokenizer
from pagetwin.engine.request import Request

if TYPE_CHECKING:
    from tests.conformance.experiments.conftest import Change

EvidenceOf = Callable[..., list[Evidence]]
Shown = list[AnyObservation]


def those(requests: list[Request], which: Callable[[Request], bool]) -> set[str]:
    return {request.request_id for request in requests if which(request)}


def goes_on_behind_eos(
    config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
) -> Shown:
    names = those(requests, lambda r: bool(r.eos_token_ids) and not r.sampling_params.ignore_eos)
    shown: Shown = []
    for one in seen:
        if isinstance(one, Finished) and one.request_id in names:
            shown.append(TokenSeen(request_id=one.request_id, token_id=1))
        shown.append(one)
    return shown


def stops_before_the_minimum(
    config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
) -> Shown:
    """One token is all that comes where there is a minimum."""
    names = those(requests, lambda r: r.sampling_params.min_tokens > 0)
    told: set[str] = set()
    shown: Shown = []
    for one in seen:
        if isinstance(one, TokenSeen) and one.request_id in names:
            if one.request_id in told:
                continue
            told.add(one.request_id)
        shown.append(one)
    return shown


def shows_part_of_the_stop_string(
    config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
) -> Shown:
    stops = {r.request_id: r.sampling_params.stop for r in requests if r.sampling_params.stop}
    shown: Shown = []
    for one in seen:
        if isinstance(one, Finished) and one.request_id in stops:
            shown.append(TextSeen(request_id=one.request_id, text=stops[one.request_id][0][0]))
        shown.append(one)
    return shown


def one_token_late(
    config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
) -> Shown:
    """What ended at a stop string is shown with its last token twice."""
    names = those(requests, lambda r: bool(r.sampling_params.stop))
    last = {one.request_id: one for one in seen if isinstance(one, TokenSeen)}
    shown: Shown = []
    for one in seen:
        if isinstance(one, Finished) and one.request_id in names:
            shown.append(last[one.request_id])
        shown.append(one)
    return shown


def a_piece_is_lost(
    config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
) -> Shown:
    names = those(requests, lambda r: r.sampling_params.output_kind == "delta")
    last = {o.request_id: i for i, o in enumerate(seen) if isinstance(o, TextSeen)}
    lost = {place for name, place in last.items() if name in names}
    return [one for i, one in enumerate(seen) if i not in lost]


def a_token_comes_twice(
    config: SessionConfig, requests: list[Request], seen: Sequence[AnyObservation]
) -> Shown:
    names = those(requests, lambda r: r.sampling_params.stream_interval == 3)
    shown: Shown = []
    for one in seen:
        shown.append(one)
        if isinstance(one, TokenSeen) and one.request_id in names:
            shown.append(one)
            names.discard(one.request_id)
    return shown


@pytest.mark.parametrize("experiment", [Stops(), Streams()], ids=lambda one: str(one.id))
def test_a_right_engine_passes_and_each_goal_is_met(
    experiment: Experiment, fingerprint: Adapter, evidence_of: EvidenceOf
) -> None:
    pieces = evidence_of(experiment, fingerprint, rounds=6)
    assert [piece.violation for piece in pieces if piece.violation is not None] == []
    for property_id in experiment.judges:
        for goal in CATALOGUE[property_id].goals:
            happened = sum(p.goals[goal] for p in pieces if p.property_id == property_id)
            assert happened >= 6, (property_id, goal)


@pytest.mark.parametrize(
    ("experiment", "change", "property_id"),
    [
        (Stops(), goes_on_behind_eos, EOS),
        (Stops(), stops_before_the_minimum, MINIMUM),
        (Stops(), shows_part_of_the_stop_string, STRINGS),
        (Stops(), one_token_late, STRINGS),
        (Streams(), a_piece_is_lost, STREAMS),
        (Streams(), a_token_comes_twice, STREAMS),
    ],
)
def test_an_end_at_the_wrong_place_is_found(
    experiment: Experiment,
    change: "Change",
    property_id: str,
    fingerprint: Adapter,
    changed: Callable[[Adapter, "Change"], Adapter],
    evidence_of: EvidenceOf,
) -> None:
    pieces = evidence_of(experiment, changed(fingerprint, change))
    broken = {piece.property_id for piece in pieces if piece.violation is not None}
    assert broken == {property_id}


def test_without_text_what_needs_none_is_judged(evidence_of: EvidenceOf) -> None:
    from pagetwin.conformance.adapters.spec import make_adapter

    pieces = evidence_of(Stops(), make_adapter("sim:"), rounds=2)
    assert {piece.property_id for piece in pieces} == {EOS, MINIMUM}
    assert all(piece.violation is None for piece in pieces)


def test_pieces_are_told_apart_by_what_stands_between() -> None:
    def token(name: str) -> TokenSeen:
        return TokenSeen(request_id=name, token_id=0)

    text = TextSeen(request_id="a", text="x")
    assert pieces_of([token("a"), text, token("a"), token("b"), token("a")]) == {"a": 2, "b": 1}


@pytest.mark.parametrize("vocab_size", [3, 32, 5000])
def test_the_tiny_tokenizer_gives_back_the_text_it_is_given(vocab_size: int) -> None:
    tokenizer = TinyTokenizer.of_size(vocab_size)
    assert tokenizer.vocab_size == vocab_size
    text = tokenizer.decode(list(range(vocab_size)))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(ValueError, match="no piece begins"):
        tokenizer.encode("a$")


def test_a_session_config_with_text_survives_its_file() -> None:
    config = SessionConfig(with_text=True)
    assert msgspec.json.decode(msgspec.json.encode(config), type=SessionConfig) == config
