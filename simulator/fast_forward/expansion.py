"""Decides what the history says of a stretch: the records of every step, as if it had stepped."""

from collections.abc import Iterator

from pagetwin.engine.step import (
    Counters,
    ScheduledSequence,
    StepPlan,
    StepResult,
    StepTimings,
    StepUpdate,
)
from pagetwin.engine.trace import HistoryWriter, PlanRecord, ResultRecord
from pagetwin.simulator.clock import to_seconds
from pagetwin.simulator.fast_forward.advance import BlockEvent, Kind, apply_event, block_events
from pagetwin.simulator.fast_forward.stretch import Stretch
from pagetwin.simulator.state import State


class Expansion:
    """Applies the block events of a stretch step by step, and writes each step's records.

    The rows' tokens are there already, their computed tokens still those of the start.
    """

    def __init__(
        self, state: State, stretch: Stretch, history: HistoryWriter, *, start: int, next_plan: int
    ) -> None:
        """`start` is the tick at which the stretch begins, `next_plan` its first plan's number."""
        self._state = state
        self._stretch = stretch
        self._history = history
        self._now = start
        self._next_plan = next_plan
        self._seq_ids = [seq.seq_id for seq in stretch.rows]
        self._computed = [seq.num_computed_tokens for seq in stretch.rows]
        self._planned = [seq.num_planned_computed for seq in stretch.rows]
        self._next_result = state.flights[0].plan.step if state.flights else next_plan

    def write(self, num_steps: int) -> None:
        events = iter(block_events(self._state, self._stretch, num_steps))
        event = next(events, None)
        for step in range(num_steps):
            new: dict[int, int] = {}
            while event is not None and (event.step, event.is_at_end) == (step, False):
                self._apply(event, new)
                event = next(events, None)
            self._write_plan(step, new)
            self._now += self._stretch.step_ticks(step)
            while event is not None and event.step == step:
                self._apply(event, new)
                event = next(events, None)
            self._write_result(step)

    def _apply(self, event: BlockEvent, new: dict[int, int]) -> None:
        seq = self._stretch.rows[event.row]
        apply_event(self._state, seq, event)
        if event.kind is Kind.TAKE:
            new[event.row] = seq.table[-1]

    def _write_plan(self, step: int, new: dict[int, int]) -> None:
        tables = {}
        if self._history.with_block_tables:
            rows = zip(self._seq_ids, self._stretch.rows, strict=True)
            tables = {seq_id: tuple(seq.table) for seq_id, seq in rows}
        plan = StepPlan(step=self._next_plan + step, scheduled=tuple(self._scheduled(step, new)))
        self._history.write(
            PlanRecord(
                plan=plan,
                counters=self._counters(),
                block_tables=tables,
                time_s=to_seconds(self._now),
            )
        )

    def _scheduled(self, step: int, new: dict[int, int]) -> Iterator[ScheduledSequence]:
        for row, (seq_id, planned) in enumerate(zip(self._seq_ids, self._planned, strict=True)):
            blocks = (new[row],) if row in new else ()
            yield ScheduledSequence(seq_id, planned + step, 1, new_block_ids=blocks, samples=True)

    def _write_result(self, step: int) -> None:
        number = self._next_result + step
        timings = StepTimings(execute_s=to_seconds(self._stretch.step_ticks(step)))
        # Confirmed are the first c + step + 1 tokens; the step's own comes after them.
        tokens = (
            seq.token_ids[computed + step + 1]
            for seq, computed in zip(self._stretch.rows, self._computed, strict=True)
        )
        sampled = dict(zip(self._seq_ids, tokens, strict=True))
        self._history.write(
            ResultRecord.of(
                StepResult(step=number, sampled=sampled, timings=timings),
                StepUpdate(step=number),
                self._counters(),
                time_s=to_seconds(self._now),
            )
        )

    def _counters(self) -> Counters:
        return self._state.counters()
