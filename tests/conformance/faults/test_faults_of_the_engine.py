"""Faults: whoever is not hit says what it always says, and nothing is left behind."""

from collections.abc import Callable

import pytest

from pagetwin.conformance.faults.campaign import CAMPAIGN, run_campaign
from pagetwin.conformance.faults.fault import Fault, ResultTwice
from pagetwin.conformance.faults.judge import judge
from pagetwin.conformance.faults.lab import Outcome, Setting, run, settings
from pagetwin.engine.core import CompletedStep, EngineCore
from pagetwin.engine.scheduler import Scheduler

SETTINGS = {setting.name: setting for setting in settings()}


def test_the_workload_is_short_of_memory_in_every_setting() -> None:
    for setting in SETTINGS.values():
        outcome = run(setting)
        assert not judge(outcome, outcome, Fault())
        assert outcome.after is not None
        swaps = outcome.after.preemptions_swap
        assert swaps > 2 if setting.scheduler.preemption_mode == "swap" else not swaps
        assert outcome.after.preemptions_recompute + swaps > 2
        assert outcome.after.prefix_hit_tokens > 0
        assert outcome.after.cow_copies > 0


def test_the_schedule_changes_no_token() -> None:
    outcomes = [run(setting) for setting in SETTINGS.values()]
    assert all(one.tokens == outcomes[0].tokens for one in outcomes)
    assert len({tuple(tokens) for tokens in outcomes[0].tokens.values()}) > 4


@pytest.mark.parametrize("kind", list(CAMPAIGN))
@pytest.mark.parametrize("name", ["recompute", "swap-async"])
def test_a_fault_hurts_only_whom_it_hits(name: str, kind: str) -> None:
    report = run_campaign(SETTINGS[name], kind)
    assert not report.broken, report.broken[:3]
    expected = kind != "swap fails" or name.startswith("swap")
    expected &= kind != "results late" or name.endswith("async")
    assert (report.struck > 0) == expected
    assert report.runs >= report.struck


class LeavesBlocks(Fault):
    """A fault that the engine does not see, and cannot make up for."""

    def step(self, core: EngineCore) -> list[CompletedStep]:
        if not self.struck and core.scheduler._state.blocks.pool.num_free:
            self.struck = True
            core.scheduler._state.blocks.pool.take()
        return list(super().step(core))


def change_a_token(outcome: Outcome) -> None:
    outcome.tokens["c/0"][2] ^= 1


def lose_a_request(outcome: Outcome) -> None:
    del outcome.ends["c/0"]


def hit_another(outcome: Outcome) -> None:
    outcome.ends["c/0"] = "error"


def keep_a_row(outcome: Outcome) -> None:
    outcome.rows_left += 1


@pytest.mark.parametrize(
    "spoil", [change_a_token, lose_a_request, hit_another, keep_a_row], ids=lambda f: f.__name__
)
def test_the_judge_sees_what_is_spoilt(spoil: Callable[[Outcome], None]) -> None:
    setting = SETTINGS["recompute"]
    sound, spoilt = run(setting), run(setting)
    spoil(spoilt)
    assert judge(spoilt, sound, Fault())


def test_the_judge_sees_a_leak_and_a_result_that_counts_twice() -> None:
    setting: Setting = SETTINGS["recompute"]
    sound = run(setting)
    fault = LeavesBlocks()
    assert any("books" in one for one in judge(run(setting, fault), sound, fault))
    twice = ResultTwice(3)
    outcome = run(setting, twice)
    assert twice.struck
    assert not judge(outcome, sound, twice)
    twice.accepted = True
    assert judge(outcome, sound, twice)


@pytest.mark.parametrize("name", ["recompute-async", "swap"])
@pytest.mark.parametrize("kind", ["execution fails", "no free block"])
def test_so_it_does_in_the_other_settings(name: str, kind: str) -> None:
    report = run_campaign(SETTINGS[name], kind)
    assert not report.broken, report.broken[:3]
    assert report.struck > 10


def test_an_engine_that_forgets_a_failed_step_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the failed step for a good one: what was never computed is cached and read."""
    monkeypatch.setattr(EngineCore, "_end_those_in", lambda self, plan: ())
    report = run_campaign(SETTINGS["recompute"], "execution fails")
    assert report.broken


def test_an_engine_that_leaks_on_abort_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Scheduler.abort_request

    def forgetful(self: Scheduler, request_id: str) -> bool:
        for seq_id, table in self._state.blocks._tables.items():
            if seq_id.startswith(f"{request_id}/"):
                del table.block_ids[:1]
        return sound(self, request_id)

    monkeypatch.setattr(Scheduler, "abort_request", forgetful)
    assert run_campaign(SETTINGS["recompute"], "abort").broken
