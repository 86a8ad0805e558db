"""What two schedulers answered, compared: the tally, and the first difference explained."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec

from pagetwin.engine.step import Counters, StepPlan, StepUpdate


class FieldDifference(NamedTuple):
    """One place where the sides differ; a side without the place has the text `(nothing)`."""

    path: str
    left: str
    right: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing on which the sides disagree."""

    where: str
    what: str
    left_name: str
    right_name: str
    fields: tuple[FieldDifference, ...]
    note: str = ""

    def explain(self) -> str:
        """For a person: the place, then each differing field with both sides."""
        lines = [f"{self.where}: {self.what}: {self.left_name} and {self.right_name} differ"]
        if self.note:
            lines.append(f"  ({self.note})")
        width = max(len(self.left_name), len(self.right_name))
        for field in self.fields:
            lines.append(f"  {field.path}")
            lines.append(f"    {self.left_name:{width}}  {field.left}")
            lines.append(f"    {self.right_name:{width}}  {field.right}")
        return "\n".join(lines)


class LockstepReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared, and the first difference if there is one.

    A decision is one entry of a plan: a scheduled sequence, a preemption, a copy, a swap of a
    block, or an admission (an introduced sequence).
    """

    steps: int
    decisions_compared: int
    decision_differences: int
    block_tables_compared: int
    block_table_differences: int
    counters_compared: int
    updates_compared: int
    refusals: int
    difference: Difference | None

    @property
    def equal(self) -> bool:
        return self.difference is None

    def explain(self) -> str:
        """One line if the sides agree, else the difference in full."""
        if self.difference is not None:
            return self.difference.explain()
        return (
            f"no difference in {self.steps} steps, {self.decisions_compared} decisions, "
            f"{self.block_tables_compared} block tables, {self.counters_compared} counters"
        )


class DifferenceFound(Exception):
    """Ends a comparison at its first difference."""


class Comparison:
    """Counts what is compared; raises DifferenceFound at the first thing that differs."""

    def __init__(self, *, left_name: str, right_name: str) -> None:
        self.where = "start"
        self.refusals = 0
        self._names = (left_name, right_name)
        self._steps = 0
        self._decisions = 0
        self._decision_differences = 0
        self._tables = 0
        self._table_differences = 0
        self._counters = 0
        self._updates = 0
        self._difference: Difference | None = None

    def report(self) -> LockstepReport:
        return LockstepReport(
            steps=self._steps,
            decisions_compared=self._decisions,
            decision_differences=self._decision_differences,
            block_tables_compared=self._tables,
            block_table_differences=self._table_differences,
            counters_compared=self._counters,
            updates_compared=self._updates,
            refusals=self.refusals,
            difference=self._difference,
        )

    def equal(self, what: str, left: Any, right: Any, *, note: str = "") -> None:
        if left != right:
            self.fail(what, left, right, note=note)

    def plans(self, left: StepPlan | None, right: StepPlan | None) -> None:
        """Compares two plans; None is a scheduler's answer that there is none to make."""
        if left is not None:
            self._steps += 1
            self._decisions += len(_decisions(left))
        if left != right:
            self._decision_differences += _count_differences(_decisions(left), _decisions(right))
            self.fail("schedule", left, right)

    def block_tables(
        self,
        plan: StepPlan,
        left: Callable[[str], tuple[int, ...]],
        right: Callable[[str], tuple[int, ...]],
    ) -> dict[str, tuple[int, ...]]:
        """Compares the table of every scheduled sequence; returns the left's, by sequence."""
        tables = {entry.seq_id: tuple(left(entry.seq_id)) for entry in plan.scheduled}
        others = {entry.seq_id: tuple(right(entry.seq_id)) for entry in plan.scheduled}
        self._tables += len(tables)
        self._table_differences += sum(tables[seq_id] != others[seq_id] for seq_id in tables)
        self.equal(f"block tables of step {plan.step}", tables, others)
        return tables

    def counters(self, event: str, left: Counters, right: Counters) -> None:
        self._counters += len(Counters.__struct_fields__)
        self.equal(f"counters after {event}", left, right)

    def updates(self, left: StepUpdate, right: StepUpdate) -> None:
        self._updates += 1
        self.equal(f"update of step {left.step}", left, right)

    def fail(self, what: str, left: Any, right: Any, *, note: str = "") -> NoReturn:
        self._difference = Difference(
            where=self.where,
            what=what,
            left_name=self._names[0],
            right_name=self._names[1],
            fields=tuple(differing_fields(left, right)),
            note=note,
        )
        raise DifferenceFound


def differing_fields(left: Any, right: Any, path: str = "") -> list[FieldDifference]:
    """The places where two pieces of plain data differ, each with both sides."""
    left, right = msgspec.to_builtins(left), msgspec.to_builtins(right)
    if left == right:
        return []
    if isinstance(left, dict) and isinstance(right, dict):
        keys = [*left, *(key for key in right if key not in left)]
        pairs = [
            (f"{path}.{key}".lstrip("."), left.get(key, _NOTHING), right.get(key, _NOTHING))
            for key in keys
        ]
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple) and left and right:
        size = max(len(left), len(right))
        pairs = [(f"{path}[{i}]", _at(left, i), _at(right, i)) for i in range(size)]
    else:
        return [FieldDifference(path or "value", _text(left), _text(right))]
    return [field for name, one, other in pairs for field in differing_fields(one, other, name)]


_NOTHING = "(nothing)"


def _at(items: Sequence[Any], index: int) -> Any:
    return items[index] if index < len(items) else _NOTHING


def _text(value: Any) -> str:
    return value if value == _NOTHING else msgspec.json.encode(value).decode()


def _decisions(plan: StepPlan | None) -> list[Any]:
    if plan is None:
        return []
    parts: list[tuple[str, tuple[Any, ...]]] = [
        ("scheduled", plan.scheduled),
        ("preempted", plan.preempted),
        ("swap_outs", plan.swap_outs),
        ("swap_ins", plan.swap_ins),
        ("copies", plan.copies),
        ("introduced", plan.introduced),
    ]
    return [(name, i, entry) for name, entries in parts for i, entry in enumerate(entries)]


def _count_differences(left: list[Any], right: list[Any]) -> int:
    """Decisions of either side that the other did not take; at least 1."""
    missing = [entry for entry in left if entry not in right]
    extra = [entry for entry in right if entry not in left]
    return max(1, len(missing), len(extra))
