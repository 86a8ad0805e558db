"""The shrinker: what is left still fails in the same way, and nothing more can be taken away."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagetwin.conformance.scenario import (
    AbortEvent,
    PreemptEvent,
    Scenario,
    SubmitEvent,
    decode_scenario,
    encode_scenario,
    load_scenario,
)
from pagetwin.conformance.shrink import cost, shrink
from pagetwin.conformance.shrink_passes import PASSES, smaller_numbers, without_some
from pagetwin.conformance.strategies import scenarios
from pagetwin.conformance.twins import judge_scenario
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import StepPlan

CORPUS = [load_scenario(path) for path in sorted((Path(__file__).parent / "corpus").glob("*.json"))]


class KeepsBlocksOfAborted(Scheduler):
    """An abort forgets to free what the sequences held."""

    def abort_request(self, request_id: str) -> bool:
        blocks = self._state.blocks
        free, blocks.free = blocks.free, lambda seq_id: None  # type: ignore[method-assign]
        try:
            return super().abort_request(request_id)
        finally:
            blocks.free = free  # type: ignore[method-assign]


class LosesACopy(Scheduler):
    """The last copy of a step is not made."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is None or not plan.copies:
            return plan
        lost = msgspec.structs.replace(plan, copies=plan.copies[:-1])
        self._state.in_flight[-1] = lost
        return lost


class PreemptsTheFirst(Scheduler):
    """The victim is the first in order."""

    def __init__(self, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
        super().__init__(cache, scheduler)
        self._planner._victim = lambda: self._state.running[0]  # type: ignore[method-assign]


BUGS = (KeepsBlocksOfAborted, LosesACopy, PreemptsTheFirst)


def broken(scenario: Scenario, bug: type[Scheduler]) -> tuple[str, ...]:
    return judge_scenario(scenario, left=bug(scenario.cache, scenario.scheduler)).broken


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_left_with_hardly_more_than_it_needs(bug: type[Scheduler]) -> None:
    found = [(scenario, ids) for scenario in CORPUS if (ids := broken(scenario, bug))]
    assert found
    for scenario, ids in found[:2]:
        shrunk = shrink(scenario, lambda one, ids=ids: ids[0] in broken(one, bug))  # type: ignore[misc]
        assert shrunk.is_minimal
        assert ids[0] in broken(shrunk.scenario, bug)
        assert judge_scenario(shrunk.scenario).holds
        requests = shrunk.scenario.requests_by_id().values()
        assert len(requests) <= 2
        assert sum(request.num_prompt_tokens for request in requests) <= 5
        data = encode_scenario(shrunk.scenario)
        assert len(data) <= 1000
        assert decode_scenario(data) == shrunk.scenario


def has_both(scenario: Scenario) -> bool:
    """A failure that needs two requests and an abort of the second."""
    submits = [e.request_id for e in scenario.events if isinstance(e, SubmitEvent)]
    aborted = {e.request_id for e in scenario.events if isinstance(e, AbortEvent)}
    return len(submits) >= 2 and submits[1] in aborted


def forces_a_request(scenario: Scenario) -> bool:
    """A failure that needs a forced preemption of a request that there is."""
    forced = {e.request_id for e in scenario.events if isinstance(e, PreemptEvent)}
    return any(entry.request.request_id in forced for entry in scenario.requests)


def long_prompt(scenario: Scenario) -> bool:
    return any(r.num_prompt_tokens >= 3 for r in scenario.requests_by_id().values())


@pytest.mark.parametrize(
    ("fails", "num_requests", "num_events"),
    [(has_both, 2, 3), (forces_a_request, 1, 2), (long_prompt, 1, 1)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_left_is_the_same_from_anywhere_and_minimal(
    fails: Callable[[Scenario], bool], num_requests: int, num_events: int
) -> None:
    tried = 0

    @settings(max_examples=40, deadline=None)
    @given(scenarios())
    def check(scenario: Scenario) -> None:
        nonlocal tried
        if not fails(scenario):
            return
        tried += 1
        shrunk = shrink(scenario, fails)
        again = shrink(scenario, fails)
        assert shrunk == again
        assert shrunk.is_minimal
        best = shrunk.scenario
        assert len(best.requests) == num_requests
        assert len(best.events) == num_events
        assert best.last_round == 0
        assert not best.scheduler.async_scheduling
        for reduce in PASSES:
            assert not any(fails(c) for c in reduce(best) if cost(c) < cost(best))

    check()
    assert tried > 2


def test_runs_are_bounded_and_the_best_so_far_is_kept() -> None:
    scenario = next(one for one in CORPUS if len(one.requests) > 3)
    asked = 0

    def fails(candidate: Scenario) -> bool:
        nonlocal asked
        asked += 1
        return True

    shrunk = shrink(scenario, fails, max_runs=4)
    assert asked == shrunk.runs == 4
    assert not shrunk.is_minimal
    assert cost(shrunk.scenario) < cost(scenario)
    assert shrunk.accepted == 3


def test_a_scenario_that_does_not_fail_is_returned_as_it_is() -> None:
    shrunk = shrink(CORPUS[0], lambda scenario: False)
    assert shrunk.scenario is CORPUS[0]
    assert (shrunk.runs, shrunk.accepted, shrunk.is_minimal) == (1, 0, False)


def test_a_failure_that_comes_and_goes_must_come_as_often_as_asked() -> None:
    calls: list[bool] = []

    def fails(scenario: Scenario) -> bool:
        calls.append(len(calls) % 2 == 0)
        return calls[-1]

    assert shrink(CORPUS[0], fails, confirmations=2).accepted == 0
    assert len(calls) == 2


@given(st.lists(st.integers(), max_size=9))
def test_parts_that_are_dropped_cover_every_item(items: list[int]) -> None:
    parts = list(without_some(items))
    assert all(len(part) < len(items) for part in parts)
    singles = [(*items[:i], *items[i + 1 :]) for i in range(len(items))]
    assert all(single in parts for single in singles)


@given(st.integers(-3, 300), st.integers(-3, 300))
def test_smaller_numbers_start_at_the_least_and_end_just_below(value: int, least: int) -> None:
    numbers = list(smaller_numbers(value, least))
    assert numbers == sorted(set(numbers))
    assert bool(numbers) == (value > least)
    if numbers:
        assert (numbers[0], numbers[-1]) == (least, value - 1)
