"""Faults as data: what goes wrong, and at which place. How they strike is in striking.py."""

from typing import ClassVar

import msgspec


class Fault(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="fault", forbid_unknown_fields=True
):
    """Something that goes wrong once, or again and again, in the life of an engine."""

    property_id: ClassVar[str]
    """What is broken if others suffer from it."""
    is_injected: ClassVar[bool] = True
    """Whether the engine must be made to suffer it (Flag.FAULT_INJECTION); the others are things
    that whoever drives its steps can do."""
    is_noticed: ClassVar[bool] = True
    """Whether the engine may plan otherwise than without it."""
    twin_follows: ClassVar[bool] = True
    """Whether the twin, which knows of no fault, does the same on the recorded events."""


class PoolEmpty(Fault, frozen=True, kw_only=True, tag="pool_empty"):
    """While plan `number` is made (from 0) the pool gives out no block; nor while every
    `every`-th plan after it is, unless that is 0."""

    property_id = "fault.allocation"
    twin_follows = False
    number: int
    every: int = 0

    def strikes(self, number: int) -> bool:
        """Whether it strikes plan `number`."""
        since = number - self.number
        return since == 0 or (self.every > 0 and since > 0 and since % self.every == 0)

    def __str__(self) -> str:
        again = f", and every {self.every} plans from there" if self.every else ""
        return f"no block is given out in plan {self.number}{again}"


class StepFails(Fault, frozen=True, kw_only=True, tag="step_fails"):
    """Execution `number` fails as a whole: no copy is made, nothing computed, no token drawn."""

    property_id = "fault.execution"
    number: int

    def __str__(self) -> str:
        return f"execution {self.number} fails"


class AllocationFails(Fault, frozen=True, kw_only=True, tag="allocation_fails"):
    """Execution `number` finds no memory for tensor `allocation` of those it makes (from 0); what
    it did before that stays done."""

    property_id = "fault.memory"
    number: int
    allocation: int

    def __str__(self) -> str:
        return f"execution {self.number} fails at its allocation {self.allocation}"


class SwapFails(Fault, frozen=True, kw_only=True, tag="swap_fails"):
    """Likewise, of the executions that move blocks to or from the host."""

    property_id = "fault.swap-copy"
    number: int

    def __str__(self) -> str:
        return f"swap {self.number} fails"


class RowFails(Fault, frozen=True, kw_only=True, tag="row_fails"):
    """The logits of `request_id` are not numbers in the execution that draws its token `number`."""

    property_id = "fault.nan-logits"
    number: int
    request_id: str

    def __str__(self) -> str:
        return f"the logits of token {self.number} of {self.request_id} are NaN"


class AbortAt(Fault, frozen=True, kw_only=True, tag="abort_at"):
    """`request_id` is aborted before step `number`, or, if `in_flight`, while it is in flight."""

    property_id = "fault.abort"
    is_injected = False
    number: int
    request_id: str
    in_flight: bool = False

    def __str__(self) -> str:
        when = "during" if self.in_flight else "before"
        return f"{self.request_id} is aborted {when} step {self.number}"


class PreemptedAt(Fault, frozen=True, kw_only=True, tag="preempted_at"):
    """`request_id` is forced to be preempted before step `number`, or, if `in_flight`, while that
    is in flight: no fault, but what an engine must take as calmly."""

    property_id = "preempt.parity"
    is_injected = False
    number: int
    request_id: str
    in_flight: bool = False

    def __str__(self) -> str:
        when = "during" if self.in_flight else "before"
        return f"{self.request_id} is forced to be preempted {when} step {self.number}"


class ResultTwice(Fault, frozen=True, kw_only=True, tag="result_twice"):
    """Result `number` is handed in a second time; it must be refused."""

    property_id = "fault.duplicated-result"
    is_noticed = False
    number: int

    def __str__(self) -> str:
        return f"result {self.number} comes twice"


class ResultsLate(Fault, frozen=True, kw_only=True, tag="results_late"):
    """Results come now as late as they may, now at once, by a seeded draw in each turn."""

    property_id = "fault.late-result"
    is_injected = False
    seed: int

    def __str__(self) -> str:
        return f"results are late or not, by seed {self.seed}"


class ClockJumps(Fault, frozen=True, kw_only=True, tag="clock_jumps"):
    """The clock goes back by an hour, on by a day, and back by more, again and again."""

    property_id = "fault.clock-jump"
    is_noticed = False

    def __str__(self) -> str:
        return "the clock jumps"


AnyFault = (
    PoolEmpty
    | StepFails
    | AllocationFails
    | SwapFails
    | RowFails
    | AbortAt
    | PreemptedAt
    | ResultTwice
    | ResultsLate
    | ClockJumps
)
KINDS: tuple[type[Fault], ...] = (
    PoolEmpty,
    StepFails,
    AllocationFails,
    SwapFails,
    RowFails,
    AbortAt,
    PreemptedAt,
    ResultTwice,
    ResultsLate,
    ClockJumps,
)
