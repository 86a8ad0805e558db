"""The random scenarios find what is wrong with an engine, and nothing where nothing is."""

from collections import Counter
from collections.abc import Callable
from itertools import islice

import pytest

from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.experiments.scenarios import RandomScenarios, play_and_judge
from pagetwin.conformance.scenario import Scenario, decode_scenario, encode_scenario
from pagetwin.conformance.strategies import scenarios
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.conformance.suite.stream import stream
from pagetwin.engine.block_pool import BlockPool
from pagetwin.engine.scheduler import Scheduler


def evidence(spec: str, examples: int, seed: int = 0) -> list[Evidence]:
    budget = Budget(600, max_examples=examples)
    return list(RandomScenarios().run(make_adapter(spec), budget, seed))


@pytest.mark.parametrize("spec", ["fingerprint:", "sim:"])
def test_a_right_engine_violates_nothing_and_much_happens(spec: str) -> None:
    pieces = evidence(spec, 60)
    assert not [piece.violation for piece in pieces if piece.violation]
    examples = Counter(piece.property_id for piece in pieces)
    assert set(examples.values()) == {60}
    goals: Counter[str] = Counter()
    for piece in pieces:
        goals.update(piece.goals)
    assert sum(count > 0 for count in goals.values()) > 15


def test_the_twin_is_not_held_against_itself() -> None:
    assert "twin.lockstep" not in {piece.property_id for piece in evidence("sim:", 1)}
    assert "twin.lockstep" in {piece.property_id for piece in evidence("fingerprint:", 1)}


def forget_every_third_abort(original: Callable[..., bool]) -> Callable[..., bool]:
    calls = Counter[str]()

    def abort(self: Scheduler, request_id: str) -> bool:
        calls["aborts"] += 1
        return original(self, request_id) if calls["aborts"] % 3 else False

    return abort


def test_a_planted_defect_is_found_and_its_scenario_shows_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        Scheduler, "abort_request", forget_every_third_abort(Scheduler.abort_request)
    )
    found = [piece for piece in evidence("fingerprint:", 60) if piece.violation]
    assert "twin.lockstep" in {piece.property_id for piece in found}
    assert all(piece.scenario is not None and piece.records for piece in found)


def test_an_engine_that_raises_is_a_finding_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: BlockPool, *arguments: object, **named: object) -> None:
        raise ZeroDivisionError("planted")

    name = next(name for name in ("free", "release", "drop") if hasattr(BlockPool, name))
    monkeypatch.setattr(BlockPool, name, broken)
    pieces = evidence("fingerprint:", 20)
    crashes = [p.violation for p in pieces if p.violation and p.property_id == "life.no-crash"]
    assert crashes
    assert "ZeroDivisionError: planted" in crashes[0].message
    assert Counter(piece.property_id for piece in pieces)["life.no-crash"] == 20


def test_an_engine_that_plans_nothing_for_ever_makes_no_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Scheduler, "schedule", lambda self: None)
    found = {piece.property_id for piece in evidence("fingerprint:", 3) if piece.violation}
    assert {"sched.progress", "life.ends"} <= found


def test_equal_seeds_draw_equal_streams_and_others_do_not() -> None:
    def drawn(seed: int) -> list[Scenario]:
        return list(islice(stream(scenarios(), seed), 30))

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)


def test_a_scenario_survives_its_file_with_the_same_records() -> None:
    adapter = make_adapter("fingerprint:")
    for scenario in islice(stream(scenarios(), 3), 10):
        again = decode_scenario(encode_scenario(scenario))
        assert play_and_judge(again, adapter).records == play_and_judge(scenario, adapter).records
