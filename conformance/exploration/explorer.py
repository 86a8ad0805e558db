"""The search: every state of a scope once, by fewest steps first, judged on every way into it."""

import time
from collections import Counter, deque
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from pagetwin.conformance.comparison import Comparison, DifferenceFound
from pagetwin.conformance.exploration import snapshots
from pagetwin.conformance.exploration.actions import Action, Plan
from pagetwin.conformance.exploration.result import Finding, ScopeResult
from pagetwin.conformance.exploration.scope import Scope
from pagetwin.conformance.exploration.witness import scenario_of
from pagetwin.conformance.exploration.world import MakeScheduler, World
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import Counters
from pagetwin.simulator.replica import Replica

Key = bytes
Progress = Callable[[int, int, int], None]
"""Called now and then with (steps, states, transitions)."""

PASSED_OVER = "passed_over"
GOALS = (
    "prefix_hit_tokens",
    "partial_hits",
    "evictions",
    "cow_copies",
    "preemptions_recompute",
    "preemptions_swap",
    "finished",
    "aborts",
    PASSED_OVER,
)
"""What shows that what a scope is about happened: counters that grew, and passing over."""


class _Node(NamedTuple):
    key: Key
    snapshot: snapshots.Snapshot


def explore(
    scope: Scope,
    *,
    left: MakeScheduler = Scheduler,
    right: MakeScheduler = Replica,
    seconds: float = float("inf"),
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ScopeResult:
    """Explores the scope until it is exhausted, something is wrong, or the seconds are over.

    States that go on alike count once (exploration/canonical.py). A layer holds the states that
    are first reached with so many steps, so none is left out because a longer way into it had
    fewer steps left. The first finding ends the search; its scenario is a shortest in steps.
    """
    search = _Search(scope, clock() + seconds, clock)
    search.run(World(scope, left, right), progress)
    return search.result()


class _Search:
    def __init__(self, scope: Scope, deadline: float, clock: Callable[[], float]) -> None:
        self._scope = scope
        self._clock = clock
        self._start, self._deadline = clock(), deadline
        self._comparison = Comparison(left_name="engine", right_name="twin")
        self._came_from: dict[Key, tuple[Key, Action] | None] = {}
        self._counts: Counter[str] = Counter()
        self._goals: Counter[str] = Counter(dict.fromkeys(GOALS, 0))
        self._layers: list[int] = []
        self._finding: Finding | None = None
        self._complete = False

    def run(self, world: World, progress: Progress | None) -> None:
        key = _digest(world, self._scope)
        self._came_from[key] = None
        layer = deque([_Node(key, snapshots.take(world))])
        while layer:
            seen = len(self._came_from)
            following: deque[_Node] = deque()
            while layer:
                if self._clock() > self._deadline or not self._expand(layer, following):
                    return
            self._layers.append(len(self._came_from) - seen)
            if progress is not None:
                progress(len(self._layers) - 1, len(self._came_from), self._counts.total())
            layer = following
        self._complete = True

    def result(self) -> ScopeResult:
        return ScopeResult(
            name=self._scope.name,
            scope=self._scope,
            states=len(self._came_from),
            states_by_steps=tuple(self._layers),
            transitions=dict(sorted(self._counts.items())),
            goals=dict(self._goals),
            complete=self._complete,
            finding=self._finding,
            seconds=round(self._clock() - self._start, 2),
        )

    def _expand(self, layer: deque[_Node], following: deque[_Node]) -> bool:
        """Does every action of the first node; False if one of them went wrong."""
        node = layer.popleft()
        world: World | None = snapshots.restore(node.snapshot)
        assert world is not None
        for action in list(world.actions(self._scope)):
            # An action that changed nothing leaves a world in which the next can be tried.
            world = world or snapshots.restore(node.snapshot)
            before = world.books
            if not self._do(world, action, node):
                return False
            self._count(action, before, world)
            key = _digest(world, self._scope)
            if key not in self._came_from:
                self._came_from[key] = (node.key, action)
                queue = following if isinstance(action, Plan) else layer
                queue.append(_Node(key, snapshots.take(world)))
            if key != node.key:
                world = None
        return True

    def _do(self, world: World, action: Action, node: _Node) -> bool:
        found: list[tuple[str, str]]
        try:
            wrong = world.do(action, self._scope, self._comparison)
            found = [(one.property_id, str(one)) for one in wrong]
        except DifferenceFound:
            found = [("twin.lockstep", self._comparison.report().explain())]
        except Exception as error:
            found = [("life.no-crash", f"{type(error).__name__}: {error}")]
        if not found:
            return True
        path = [*self._path(node.key), action]
        property_id, message = found[0]
        self._finding = Finding(
            property_id=property_id,
            message=message,
            also=tuple(dict.fromkeys(name for name, _ in found[1:])),
            path=tuple(repr(one) for one in path),
            scenario=scenario_of(self._scope, path, note=f"{property_id}: exploration"),
        )
        return False

    def _path(self, key: Key) -> list[Action]:
        path: list[Action] = []
        while (step := self._came_from[key]) is not None:
            key, action = step
            path.append(action)
        return path[::-1]

    def _count(self, action: Action, before: Counters, world: World) -> None:
        self._counts[type(action).__name__.lower()] += 1
        for name in GOALS:
            if name != PASSED_OVER:
                self._goals[name] += getattr(world.books, name) > getattr(before, name)
        self._goals[PASSED_OVER] += world.passed_over


def _digest(world: World, scope: Scope) -> Key:
    """128 bits of the state's key; two of a million states fall together with odds of 1e-27."""
    return blake2b(repr(world.key(scope)).encode(), digest_size=16).digest()
