"""Faults: whoever is not hit says what it always says, and nothing is left behind."""

from collections.abc import Callable
from functools import lru_cache

import msgspec
import pytest

from pagetwin.conformance.adapters.protocol import SessionConfig, SessionRefused
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.experiments.faults import Faults
from pagetwin.conformance.experiments.scenarios import play_and_judge
from pagetwin.conformance.faults.campaign import Campaign, run_campaign, supported_kinds
from pagetwin.conformance.faults.fault import (
    AnyFault,
    ClockJumps,
    PreemptedAt,
    ResultTwice,
    StepFails,
)
from pagetwin.conformance.faults.judge import Judge
from pagetwin.conformance.faults.lab import Outcome, run
from pagetwin.conformance.properties import CATALOGUE
from pagetwin.conformance.scenario import Scenario, decode_scenario, encode_scenario
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.config import CacheConfig
from pagetwin.engine.core import EngineCore
from pagetwin.engine.plan_draft import PlanDraft
from pagetwin.engine.planning import Planner
from pagetwin.engine.sequence import Sequence

FINGERPRINT = make_adapter("fingerprint:")
KINDS = supported_kinds(FINGERPRINT)


@lru_cache
def campaign() -> Campaign:
    return Campaign(FINGERPRINT)


def setting(name: str) -> Scenario:
    return campaign().settings()[name]


def under(fault: AnyFault, name: str = "recompute") -> Scenario:
    return msgspec.structs.replace(setting(name), fault=fault)


def judged(outcome: Outcome, scenario: Scenario) -> list[str]:
    judge = Judge(FINGERPRINT.capabilities(), "")
    sound = campaign().sound(scenario)
    return [one.message for one in judge.judge(outcome, sound, scenario)]


@pytest.mark.parametrize("name", campaign().settings())
def test_the_workload_is_short_of_memory_in_every_setting(name: str) -> None:
    outcome = campaign().sound(setting(name))
    assert not outcome.broken
    assert outcome.reset is not None
    counters = outcome.reset.counters
    swaps = counters.preemptions_swap
    assert swaps > 2 if name.startswith("swap") else not swaps
    assert counters.preemptions_recompute + swaps > 2
    assert counters.prefix_hit_tokens > 0
    assert counters.cow_copies > 0


def test_the_schedule_changes_no_token() -> None:
    outcomes = [campaign().sound(one) for one in campaign().settings().values()]
    assert all(one.answers == outcomes[0].answers for one in outcomes)
    assert len({one.token_ids for one in outcomes[0].answers.values()}) > 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["recompute", "swap-async"])
def test_a_fault_hurts_only_whom_it_hits(name: str, kind: str) -> None:
    report = run_campaign(campaign(), name, kind)
    assert not report.broken, report.broken[:3]
    expected = kind != "fault.swap-copy" or name.startswith("swap")
    expected &= kind != "fault.late-result" or name.endswith("async")
    assert (report.struck > 0) == expected
    assert report.runs >= report.struck


@pytest.mark.parametrize("name", ["recompute-async", "swap"])
@pytest.mark.parametrize("kind", ["fault.execution", "fault.allocation"])
def test_so_it_does_in_the_other_settings(name: str, kind: str) -> None:
    report = run_campaign(campaign(), name, kind)
    assert not report.broken, report.broken[:3]
    assert report.struck > 10


def test_each_goal_is_met_within_a_few_rounds() -> None:
    pieces = list(Faults().run(FINGERPRINT, Budget(1e9, max_examples=12), seed=0))
    for kind in KINDS:
        own = [piece for piece in pieces if piece.property_id == kind]
        assert own
        assert all(piece.violation is None for piece in own)
        for goal in CATALOGUE[kind].goals:
            assert sum(piece.goals[goal] for piece in own) > 0, (kind, goal)


def test_an_engine_without_injection_is_tried_by_what_its_driver_can_do() -> None:
    twin = make_adapter("sim:")
    by_its_driver = ["fault.abort", "preempt.parity", "fault.late-result"]
    assert supported_kinds(twin) == by_its_driver
    pieces = list(Faults().run(twin, Budget(1e9, max_examples=4), seed=0))
    assert {piece.property_id for piece in pieces} == set(by_its_driver)
    assert all(piece.violation is None for piece in pieces)
    with pytest.raises(SessionRefused, match="no engine around its scheduler"):
        twin.open(SessionConfig(fault=ClockJumps()))


def test_a_configuration_that_no_engine_takes_is_refused() -> None:
    """A shrinker tries such; nothing is wrong with the engine."""
    cache = CacheConfig(num_blocks=2, block_size=1)
    with pytest.raises(SessionRefused, match="raise num_blocks"):
        FINGERPRINT.open(SessionConfig(cache=cache, fault=ClockJumps()))


def change_a_token(outcome: Outcome) -> None:
    answer = outcome.answers["c/0"]
    tokens = (answer.token_ids[0] ^ 1, *answer.token_ids[1:])
    outcome.answers["c/0"] = answer._replace(token_ids=tokens)


def lose_a_request(outcome: Outcome) -> None:
    del outcome.answers["c/0"]


def hit_another(outcome: Outcome) -> None:
    outcome.answers["c/0"] = outcome.answers["c/0"]._replace(reason="error")


def keep_a_row(outcome: Outcome) -> None:
    outcome.num_kept += 1


def keep_a_block(outcome: Outcome) -> None:
    assert outcome.reset is not None
    counters = outcome.reset.counters
    fewer = msgspec.structs.replace(counters, num_free_blocks=counters.num_free_blocks - 1)
    outcome.reset = msgspec.structs.replace(outcome.reset, counters=fewer)


def count_twice(outcome: Outcome) -> None:
    outcome.accepted_twice = True


@pytest.mark.parametrize(
    "spoil",
    [change_a_token, lose_a_request, hit_another, keep_a_row, keep_a_block, count_twice],
    ids=lambda f: f.__name__,
)
def test_the_judge_sees_what_is_spoilt(spoil: Callable[[Outcome], None]) -> None:
    scenario = under(ResultTwice(number=3))
    outcome = run(FINGERPRINT, scenario)
    assert outcome.struck == 1
    assert not judged(outcome, scenario)
    spoil(outcome)
    assert judged(outcome, scenario)


def test_an_engine_that_forgets_a_failed_step_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the failed step for a good one: what was never computed is cached and read. The
    scenario shows it again, from its file, too."""
    monkeypatch.setattr(EngineCore, "_end_those_in", lambda self, plan: ())
    own = Campaign(FINGERPRINT)
    broken = [
        scenario
        for number in range(6)
        if own.judge(scenario := under(StepFails(number=number))).violations
    ]
    assert broken
    again = decode_scenario(encode_scenario(broken[0]))
    assert again == broken[0]
    found = play_and_judge(again, FINGERPRINT).violations
    assert {one.property_id for one in found} == {"fault.execution"}
    monkeypatch.undo()
    assert not play_and_judge(again, FINGERPRINT).violations


def test_a_token_that_is_lost_by_force_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    preempt = Planner._preempt

    def forgetful(self: Planner, victim: Sequence, draft: PlanDraft) -> None:
        preempt(self, victim, draft)
        if self._state.to_preempt:
            victim.token_ids.pop()

    monkeypatch.setattr(Planner, "_preempt", forgetful)
    fault = PreemptedAt(number=4, request_id="a")
    violations = Campaign(FINGERPRINT).judge(under(fault)).violations
    assert {one.property_id for one in violations} == {"preempt.parity"}
    assert any("a/0 was not hit, and differs" in one.message for one in violations)
