"""Facts: what a plan and a result did to sequences and blocks, as the ledger understood them."""

from dataclasses import dataclass, field
from typing import Literal

from pagetwin.engine.request import Request
from pagetwin.engine.step import ScheduledSequence, StepPlan

State = Literal["waiting", "running", "swapped"]


@dataclass
class LedgerSequence:
    """A sequence as the history shows it. `computed` counts the steps in flight as done."""

    seq_id: str
    request: Request
    sample_index: int
    tokens: list[int]
    grouped: bool = False
    """It stands for a group that has yet to fork, or to select for the first time."""
    state: State = "waiting"
    computed: int = 0
    placeholders: int = 0
    """Tokens that steps in flight will add."""
    table: list[int] = field(default_factory=list)
    host: list[int] = field(default_factory=list)
    """While swapped: the host block of each saved table entry, -1 for a null entry."""
    preempted_before: bool = False
    in_steps: list[int] = field(default_factory=list)
    """Steps in flight that schedule it."""

    @property
    def weight(self) -> int:
        """What it counts towards max_num_seqs (docs/policy.md P2.8)."""
        return self.request.num_samples if self.grouped else 1

    @property
    def num_known(self) -> int:
        """Its tokens, those counted that steps in flight will add."""
        return len(self.tokens) + self.placeholders


@dataclass(frozen=True)
class Replaced:
    """A table entry that a copy replaced."""

    index: int
    old: int
    new: int
    was_shared: bool


@dataclass(frozen=True)
class TableChange:
    """How one sequence's table came to be what it is in a step."""

    table: tuple[int, ...]
    hits: tuple[int, ...] = ()
    """Cached blocks that the table starts with."""
    source: int | None = None
    """Block that a partial hit copies."""
    taken: tuple[int, ...] = ()
    occupied: tuple[int, ...] = ()
    """Those of `taken` that something held."""
    replaced: tuple[Replaced, ...] = ()
    restored: tuple[tuple[int, int], ...] = ()
    """(host block, device block) of a swap-in, by the ledger's own books."""


@dataclass(frozen=True)
class Entry:
    """One scheduled sequence, in plan order."""

    scheduled: ScheduledSequence
    sequence: LedgerSequence
    came_from: State
    computed_before: int
    """Tokens with valid K/V before this step; for an admission its cached tokens."""
    num_known: int
    introduced_tokens: tuple[int, ...] | None
    """None if the plan does not introduce it."""
    cached_tokens: int
    """As the introduction says."""
    change: TableChange

    @property
    def end(self) -> int:
        return self.scheduled.num_computed_tokens + self.scheduled.num_scheduled_tokens


@dataclass(frozen=True)
class Victim:
    """A preempted sequence, as it was."""

    sequence: LedgerSequence
    mode: str
    state_before: State
    due: str
    """Whom docs/policy.md P3.1 and P3.1a name at that moment; P3.5, if it names anybody."""
    has_row: bool
    """The executor holds a row of that name."""
    saved: tuple[tuple[int, int], ...] = ()
    """(device block, host block) of the entries that a swap keeps; -1 for one not copied."""


@dataclass(frozen=True)
class Row:
    """One scheduled sequence when its step's result takes effect."""

    scheduled: ScheduledSequence
    sequence: LedgerSequence
    table: tuple[int, ...]
    """As planned: what the step wrote and read."""
    ended_before: bool = False
    """It ended while the step was in flight: the row counts for nothing."""

    @property
    def end(self) -> int:
        return self.scheduled.num_computed_tokens + self.scheduled.num_scheduled_tokens


@dataclass(frozen=True)
class PlanFacts:
    plan: StepPlan
    in_flight: tuple[int, ...]
    """Steps that were in flight when it was made."""
    victims: tuple[Victim, ...]
    forced: tuple[str, ...]
    """Whom forced preemptions name, in order (docs/policy.md P3.5)."""
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class ResultFacts:
    plan: StepPlan
    rows: tuple[Row, ...]
    released: tuple[int, ...]
    """Blocks that left a table because they are outside the window."""


Facts = PlanFacts | ResultFacts | None
