"""Exploration: nothing is found in a sound engine, and what is planted is found and replayed."""

import random

import msgspec
import pytest

from pagetwin.conformance.comparison import Comparison
from pagetwin.conformance.exploration import snapshots
from pagetwin.conformance.exploration.actions import Action, Plan, Submit
from pagetwin.conformance.exploration.explorer import GOALS, explore
from pagetwin.conformance.exploration.result import ScopeResult
from pagetwin.conformance.exploration.scope import Scope, make_scope
from pagetwin.conformance.exploration.scopes import scopes
from pagetwin.conformance.exploration.witness import scenario_of
from pagetwin.conformance.exploration.world import World
from pagetwin.conformance.scenario import Scenario, encode_scenario
from pagetwin.conformance.shrink import shrink
from pagetwin.conformance.twins import judge_scenario
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.sequence import Sequence
from pagetwin.engine.step import StepPlan
from pagetwin.simulator.replica import Replica

QUICK = {scope.name: scope for scope in scopes("quick")}
FOUND: dict[str, ScopeResult] = {}


@pytest.mark.parametrize("name", list(QUICK))
def test_every_state_of_a_quick_scope_is_sound(name: str) -> None:
    result = FOUND[name] = explore(QUICK[name])
    assert result.finding is None, result.finding
    assert result.complete
    assert result.states == sum(result.states_by_steps) + 1
    assert result.num_transitions > 2 * result.states
    scope = QUICK[name]
    by_choice = {"abort": scope.aborts, "reset": scope.resets, "preempt": scope.preemptions}
    chosen = {action for action, may_be in by_choice.items() if may_be}
    assert set(result.transitions) == {"close", "plan", "submit"} | chosen


def test_the_quick_scopes_together_reach_all_that_they_are_about() -> None:
    """Also alone, or beside only some of the others (pytest -k, xdist)."""
    for name in ("quick-forks-swap", "quick-three-blocks", "quick-fcfs-swap", "quick-waiting"):
        FOUND.setdefault(name, explore(QUICK[name]))
    for goal in GOALS:
        assert sum(result.goals[goal] for result in FOUND.values()) > 0, goal


def test_the_scopes_cover_every_policy_and_mode_and_are_named_once() -> None:
    full = scopes("full")
    assert len({scope.name for scope in full}) == len(full)
    three = [scope for scope in full if scope.max_requests == 3]
    configurations = {
        (s.scheduler.policy, s.scheduler.preemption_mode, s.scheduler.async_scheduling)
        for s in three
    }
    assert len(configurations) == 8
    for scope in three:
        assert (scope.cache.num_blocks, scope.cache.block_size, scope.max_steps) == (5, 2, 6)


class LosesACopy(Scheduler):
    """The copy of a partial hit is left out where something else is copied, too."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is None or not plan.copies:
            return plan
        lost = msgspec.structs.replace(plan, copies=plan.copies[:-1])
        self._state.in_flight[-1] = lost
        return lost


class ForgetsOneBlock(Scheduler):
    """An abort of a sequence that has more than one block keeps the first."""

    def abort_request(self, request_id: str) -> bool:
        tables = self._state.blocks._tables
        for seq_id, table in tables.items():
            if seq_id.startswith(f"{request_id}/") and len(table.block_ids) > 1:
                table.block_ids = table.block_ids[1:]
                break
        return super().abort_request(request_id)


class PreemptsTheFirst(Scheduler):
    """Victims are taken from the wrong end."""

    def schedule(self) -> StepPlan | None:
        self._planner._victim = self._first  # type: ignore[method-assign]
        return super().schedule()

    def _first(self) -> Sequence:
        return self._state.running[0]


class LenientReset(Scheduler):
    """A reset that must be refused says that it was done."""

    def reset_prefix_cache(self) -> bool:
        super().reset_prefix_cache()
        return True


class LenientTwin(Replica):
    """The same mistake on the other side."""

    def reset_prefix_cache(self) -> bool:
        super().reset_prefix_cache()
        return True


BUGS = {
    LosesACopy: "quick-fcfs-recompute",
    ForgetsOneBlock: "quick-fcfs-swap-async",
    PreemptsTheFirst: "quick-three-blocks",
    LenientReset: "quick-fcfs-recompute",
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found_and_its_scenario_replays_and_shrinks(bug: type[Scheduler]) -> None:
    scope = QUICK[BUGS[bug]]
    result = explore(scope, left=bug)
    assert not result.complete
    assert result.finding is not None
    scenario = result.finding.scenario

    def broken(candidate: Scenario) -> bool:
        return not judge_scenario(candidate, left=bug(candidate.cache, candidate.scheduler)).holds

    assert broken(scenario), result.finding
    assert judge_scenario(scenario).holds
    shrunk = shrink(scenario, broken)
    assert shrunk.is_minimal
    assert len(encode_scenario(shrunk.scenario)) < 1000


def test_a_bug_that_both_sides_share_is_found_by_the_checkers() -> None:
    result = explore(QUICK["quick-fcfs-recompute"], left=LenientReset, right=LenientTwin)
    assert result.finding is not None
    assert result.finding.property_id == "cache.reset"


def test_a_search_that_runs_out_of_time_says_so() -> None:
    now = iter(float(second) for second in range(1000))
    result = explore(QUICK["quick-fcfs-recompute"], seconds=50.0, clock=lambda: next(now))
    assert not result.complete
    assert result.finding is None
    assert result.states > 10


def random_walk(scope: Scope, rng: random.Random, length: int) -> list[Action]:
    """Actions that some way through the scope takes; a plan that must wait is none."""
    world, path = World(scope), list[Action]()
    for _ in range(length):
        options = list(world.actions(scope))
        action = rng.choice(options)
        if isinstance(rng.choice(options), Plan | Submit):
            action = next((one for one in options if isinstance(one, Plan)), action)
        before = world.num_plans
        assert not world.do(action, scope, comparison())
        if not isinstance(action, Plan) or world.num_plans > before:
            path.append(action)
    return path


def comparison() -> Comparison:
    return Comparison(left_name="engine", right_name="twin")


@pytest.mark.parametrize("name", ["quick-fcfs-swap-async", "quick-forks", "quick-failures"])
def test_states_with_equal_keys_go_on_alike(name: str) -> None:
    """Merging them is sound: whatever may happen in the one may happen in the other, and leads
    to equal keys again."""
    scope = msgspec.structs.replace(QUICK[name], max_requests=3)
    rng = random.Random(7)
    by_key: dict[str, tuple[list[Action], snapshots.Snapshot]] = {}
    merged = 0
    for _ in range(150):
        world, path = World(scope), list[Action]()
        for action in random_walk(scope, rng, rng.randrange(4, 12)):
            world.do(action, scope, comparison())
            path.append(action)
        key = repr(world.key(scope))
        if key not in by_key:
            by_key[key] = path, snapshots.take(world)
            continue
        before, snapshot = by_key[key]
        other: World = snapshots.restore(snapshot)
        if before == path:
            continue
        mine = {repr(action): action for action in world.actions(scope)}
        theirs = {repr(action): action for action in other.actions(scope)}
        for name_, action in mine.items():
            if name_ not in theirs:
                continue  # It names a request by its number, and these may differ.
            one, two = (snapshots.restore(snapshots.take(w)) for w in (world, other))
            one.do(action, scope, comparison())
            two.do(theirs[name_], scope, comparison())
            assert repr(one.key(scope)) == repr(two.key(scope)), (path, before, action)
            merged += 1
    assert merged > 20


def test_a_path_is_the_scenario_that_replays_it() -> None:
    """Round by round: the plans of the replay begin with those of the path."""
    for name in ("quick-fcfs-swap-async", "quick-priority-recompute", "quick-failures"):
        scope, rng = QUICK[name], random.Random(3)
        for _ in range(30):
            path = random_walk(scope, rng, 14)
            world = World(scope)
            plans: list[StepPlan] = []
            for action in path:
                world.do(action, scope, comparison())
                plans += [left for left, _, _ in world.in_flight if left not in plans]
            scenario = scenario_of(scope, path)
            if not scenario.requests:
                continue
            verdict = judge_scenario(scenario)
            assert verdict.holds, verdict.explain()
            replayed = [r.plan for r in verdict.records if hasattr(r, "plan")]
            assert replayed[: len(plans)] == plans


def test_a_snapshot_is_a_world_of_its_own() -> None:
    scope = make_scope("one", max_requests=1)
    world = World(scope)
    world.do(Submit((0, 0, 0)), scope, comparison())
    snapshot = snapshots.take(world)
    key = repr(world.key(scope))
    world.do(Plan(), scope, comparison())
    again: World = snapshots.restore(snapshot)
    assert repr(again.key(scope)) == key != repr(world.key(scope))
    again.do(Plan(), scope, comparison())
    assert repr(again.key(scope)) == repr(world.key(scope))
