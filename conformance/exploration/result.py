"""What an exploration found, as versioned JSON."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from pagetwin.conformance.environment import Commit, commit, machine, versions
from pagetwin.conformance.exploration.scope import Scope
from pagetwin.conformance.scenario import Scenario
from pagetwin.engine.errors import TraceError

SCHEMA = "pagetwin.exploration/1"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, and how to get there."""

    property_id: str
    message: str
    also: tuple[str, ...] = ()
    """Further properties that the same event broke."""
    path: tuple[str, ...]
    scenario: Scenario


class ScopeResult(msgspec.Struct, frozen=True, kw_only=True):
    """One scope: how many states and transitions, and whether that is all there are."""

    name: str
    scope: Scope
    states: int
    """Different states of engine and twin, by their canonical keys."""
    states_by_steps: tuple[int, ...]
    """New states by the number of steps planned on the shortest way into them."""
    transitions: dict[str, int]
    """Judged events by kind: every one that may happen, in every state."""
    goals: dict[str, int]
    """Transitions on which a counter of that name grew."""
    complete: bool
    finding: Finding | None
    seconds: float

    @property
    def num_transitions(self) -> int:
        return sum(self.transitions.values())


class ExplorationResult(msgspec.Struct, frozen=True, kw_only=True):
    """All scopes of a run."""

    schema: str = SCHEMA
    commit: Commit | None = None
    versions: dict[str, str] = {}
    machine: dict[str, str] = {}
    scopes: tuple[ScopeResult, ...]

    @property
    def states(self) -> int:
        return sum(one.states for one in self.scopes)

    @property
    def transitions(self) -> int:
        return sum(one.num_transitions for one in self.scopes)

    @property
    def holds(self) -> bool:
        """Whether nothing was found; `complete` tells whether that is the last word."""
        return all(one.finding is None for one in self.scopes)

    @property
    def complete(self) -> bool:
        return all(one.complete for one in self.scopes)


def result_here(scopes: Sequence[ScopeResult]) -> ExplorationResult:
    """The result of a run of these sources on this machine."""
    return ExplorationResult(
        commit=commit(("engine", "simulator", "conformance")),
        versions=versions(),
        machine=machine(),
        scopes=tuple(scopes),
    )


def save_exploration(result: ExplorationResult, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def load_exploration(path: Path) -> ExplorationResult:
    """Reads a result. Raises TraceError, naming the file, if it is none of this version."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=ExplorationResult)
    except (OSError, msgspec.DecodeError) as error:
        raise TraceError(f"{path}: not an exploration ({error})") from None
    if result.schema != SCHEMA:
        raise TraceError(f"{path}: schema {result.schema!r}, this version reads {SCHEMA!r}")
    return result
