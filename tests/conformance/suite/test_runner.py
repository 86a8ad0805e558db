"""Evidence becomes statuses, statuses an exit code; nothing left out looks like a pass."""

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    AdapterLied,
    EngineDied,
    EngineInfo,
    Session,
    SessionConfig,
)
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.capability import Capabilities, Flag, no
from pagetwin.conformance.catalogue.property import Property
from pagetwin.conformance.properties import CATALOGUE, violation
from pagetwin.conformance.suite.evidence import Evidence, Status
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.conformance.suite.profiles import PROFILES, Profile, find_profile
from pagetwin.conformance.suite.registry import experiments
from pagetwin.conformance.suite.result import ExitCode, SuiteResult
from pagetwin.conformance.suite.runner import RunOptions, SuiteRun, false_alarm_shares
from pagetwin.conformance.suite.waivers import read_waivers, waive
from pagetwin.engine.errors import ConfigError

ONE = "life.ends"
OTHER = "life.exactly-once"
GOAL = CATALOGUE[OTHER].goals[0]


class Nothing:
    """An adapter that is never opened."""

    def __init__(self, *flags: Flag) -> None:
        self._flags = flags

    def describe(self) -> EngineInfo:
        return EngineInfo(name="nothing")

    def capabilities(self) -> Capabilities:
        return Capabilities.of(self._flags, {Flag.CANCEL: no("nobody listens")})

    def open(self, config: SessionConfig) -> Session:
        raise AssertionError("no experiment of these tests opens a session")

    def close(self) -> None:
        """Nothing is held."""


class Scripted:
    """An experiment that yields what it is told to, and may then raise."""

    def __init__(
        self, *pieces: Evidence, ends: BaseException | None = None, needs: Sequence[Flag] = ()
    ) -> None:
        self.id = "scripted"
        self.judges = (ONE, OTHER)
        self.needs = frozenset(needs)
        self.weight = 1.0
        self.budgets: list[Budget] = []
        self._pieces = pieces
        self._ends = ends

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        self.budgets.append(budget)
        yield from self._pieces
        if self._ends is not None:
            raise self._ends


def profile(*ids: str, is_claim: bool = False) -> Profile:
    def includes(row: Property) -> bool:
        return row.id in ids

    return Profile("test", "for a test", includes, is_claim)


def run(*chosen: Any, ids: Sequence[str] = (ONE,), is_claim: bool = False) -> SuiteResult:
    options = RunOptions(spec="nothing:", profile=profile(*ids, is_claim=is_claim), budget_s=9)
    return SuiteRun(Nothing(Flag.TEXT), options, experiments=chosen).run()


HELD = Evidence(property_id=ONE)
BROKEN = Evidence(property_id=ONE, violation=violation(ONE, 3, "it never ends", request="r0"))
UNDECIDED = Evidence(property_id=ONE, undecided="more draws are needed")
UNTRUSTED = Evidence(property_id=ONE, untrusted="its control was not caught")

ENDINGS: dict[str, tuple[tuple[Evidence, ...], BaseException | None, Status, ExitCode]] = {
    "held": ((HELD, HELD), None, Status.PASS, ExitCode.CLEAN),
    "violated": ((HELD, BROKEN, HELD), None, Status.FAIL, ExitCode.VIOLATION),
    "no example": ((), None, Status.UNDECIDED, ExitCode.NOT_ENOUGH_EVIDENCE),
    "undecided": ((HELD, UNDECIDED), None, Status.UNDECIDED, ExitCode.NOT_ENOUGH_EVIDENCE),
    "decided after all": ((UNDECIDED, HELD), None, Status.PASS, ExitCode.CLEAN),
    "untrusted": ((HELD, UNTRUSTED), None, Status.ERROR, ExitCode.UNTRUSTWORTHY),
    "untrusted and violated": ((BROKEN, UNTRUSTED), None, Status.ERROR, ExitCode.UNTRUSTWORTHY),
    "broke": ((HELD,), ZeroDivisionError("x"), Status.ERROR, ExitCode.UNTRUSTWORTHY),
    "broke after a violation": ((BROKEN,), ValueError(), Status.FAIL, ExitCode.VIOLATION),
    "dead": ((), EngineDied("gone"), Status.UNDECIDED, ExitCode.USAGE),
    "dead after a violation": ((BROKEN,), EngineDied("gone"), Status.FAIL, ExitCode.VIOLATION),
    "interrupted": ((HELD,), KeyboardInterrupt(), Status.PASS, ExitCode.NOT_ENOUGH_EVIDENCE),
    "lied": ((HELD,), AdapterLied("no records"), Status.PASS, ExitCode.UNTRUSTWORTHY),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_every_ending_has_its_status_and_exit_code(name: str) -> None:
    pieces, ends, status, code = ENDINGS[name]
    result = run(Scripted(*pieces, ends=ends))
    assert result.results[0].status == status
    assert result.exit_code == code
    assert bool(result.results[0].reason) == (status != Status.PASS)
    cut = isinstance(ends, KeyboardInterrupt | EngineDied | AdapterLied)
    assert result.complete == (not cut)
    assert bool(result.cut_short) == cut


def test_a_goal_that_was_not_met_is_vacuous_whatever_held() -> None:
    result = run(Scripted(Evidence(property_id=OTHER, goals={GOAL: 0})), ids=(OTHER,))
    assert result.results[0].status == Status.VACUOUS
    assert GOAL in result.results[0].reason
    assert result.exit_code == ExitCode.NOT_ENOUGH_EVIDENCE
    met = run(Scripted(Evidence(property_id=OTHER, goals={GOAL: 1})), ids=(OTHER,))
    assert met.results[0].status == Status.PASS


def test_what_the_engine_lacks_is_unsupported_with_its_reason_and_no_pass() -> None:
    result = run(Scripted(HELD), ids=(ONE, "life.silent-after-end"))
    lacking = result.results[1] if result.results[0].property_id == ONE else result.results[0]
    assert lacking.status == Status.UNSUPPORTED
    assert "nobody listens" in lacking.reason
    assert result.exit_code == ExitCode.CLEAN
    claimed = run(Scripted(HELD), ids=(ONE, "life.silent-after-end"), is_claim=True)
    assert claimed.exit_code == ExitCode.NOT_ENOUGH_EVIDENCE


def test_nothing_but_unsupported_is_not_clean() -> None:
    result = run(Scripted(HELD, needs=[Flag.READ_KV]))
    assert result.results[0].status == Status.UNSUPPORTED
    assert "read_kv" in result.results[0].reason
    assert result.exit_code == ExitCode.NOT_ENOUGH_EVIDENCE


def test_evidence_on_what_cannot_be_judged_counts_for_nothing() -> None:
    silent = "life.silent-after-end"
    chosen = Scripted(Evidence(property_id=ONE))
    chosen.judges = (ONE, silent)
    result = run(chosen, ids=(ONE,))
    assert [one.property_id for one in result.results] == [ONE]


def test_time_that_one_experiment_leaves_goes_to_the_next() -> None:
    first, second = Scripted(HELD), Scripted(HELD)
    first.weight, second.weight = 1.0, 2.0
    result = run(first, second)
    assert result.results[0].examples == 2
    assert [len(one.budgets) for one in (first, second)] == [1, 1]
    assert first.budgets[0].seconds == pytest.approx(3, abs=0.5)
    assert second.budgets[0].seconds == pytest.approx(9, abs=0.5)


def test_shares_of_false_alarms_sum_to_the_familys() -> None:
    shares = false_alarm_shares()
    assert sum(shares.values()) <= 1e-4 * (1 + 1e-9)
    assert set(shares) == {row.id for row in CATALOGUE.values() if row.false_alarm_weight}


def test_a_budget_always_allows_a_first_example_and_no_more_than_the_clock() -> None:
    now = [0.0]
    budget = Budget(5, clock=lambda: now[0])
    assert budget.allows(3)
    now[0] = 5.0
    assert budget.allows(0)
    assert not budget.allows(1)
    assert not Budget(5, max_examples=2).allows(2)


def test_every_property_is_judged_by_an_experiment_and_every_goal_named() -> None:
    judged = {name for one in experiments() for name in one.judges}
    assert judged == set(CATALOGUE)
    ids = [one.id for one in experiments()]
    assert len(set(ids)) == len(ids)
    for row in CATALOGUE.values():
        assert row.id.count(".") == 1, row.id
        assert row.statement.endswith("."), row.id


def test_the_twin_can_claim_to_be_a_simulator() -> None:
    can = make_adapter("sim:").capabilities()
    assert [row.id for row in find_profile("simulator").properties if can.missing(row.needs)] == []


def test_profiles_are_found_and_none_is_empty() -> None:
    for one in PROFILES.values():
        assert one.properties, one.name
    assert len(find_profile("default").properties) == len(CATALOGUE)
    with pytest.raises(ConfigError, match="serve-basic"):
        find_profile("serve")


def test_only_who_promises_equal_bits_can_claim_to_be_deterministic() -> None:
    rows = find_profile("deterministic").properties
    promised = {flag for row in rows for flag in row.needs}
    assert not any(Capabilities.of(promised).missing(row.needs) for row in rows)
    for flag in (Flag.INVARIANT_BATCH, Flag.INVARIANT_PREEMPT, Flag.CHOSEN_LOGPROB):
        short = Capabilities.of(promised - {flag})
        assert all([name for name, _ in short.missing(row.needs)] == [flag] for row in rows)


def test_a_waiver_takes_the_sting_out_until_its_last_day(tmp_path: Path) -> None:
    file = tmp_path / "waivers.toml"
    file.write_text(f'[[waiver]]\nproperty="{ONE}"\nreason="known"\nexpires=2030-01-02\n')
    waivers = read_waivers(file)
    failed = run(Scripted(BROKEN)).results[0]
    waived = waive(failed, waivers, datetime.date(2030, 1, 2))
    assert waived.status == Status.WAIVED
    assert "known" in waived.reason
    assert "it never ends" in waived.reason
    late = waive(failed, waivers, datetime.date(2030, 1, 3))
    assert late.status == Status.FAIL
    assert "expired" in late.reason
    held = run(Scripted(HELD)).results[0]
    assert waive(held, waivers, datetime.date(2030, 1, 1)) == held


@pytest.mark.parametrize(
    "text",
    [
        "[[waiver]]\nproperty='no.such'\nreason='r'\nexpires=2030-01-01\n",
        f"[[waiver]]\nproperty='{ONE}'\nreason=' '\nexpires=2030-01-01\n",
        f"[[waiver]]\nproperty='{ONE}'\nexpires=2030-01-01\n",
        "[[waiver",
    ],
)
def test_a_file_that_holds_no_waivers_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "waivers.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"waivers\.toml"):
        read_waivers(file)
