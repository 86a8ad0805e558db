"""Decides how long a replica does nothing but decode the same sequences.

In such a stretch every step gives each running sequence one token, takes blocks as they fill,
and decides nothing else: nobody is admitted, preempted, forked or finished. Its steps cost a line
in the tokens that they see (`CostModel.decode_line`), and so the stretch a parabola in the number
of steps, in whole ticks. Where a step is planned ahead, that is so while the device is behind the
host: then a step takes what the device does, but for the first, which began before.
"""

from dataclasses import dataclass
from typing import NamedTuple

from pagetwin.engine.step import StepPlan
from pagetwin.simulator.cost_model import CostModel, StepComposition
from pagetwin.simulator.decoding import decodes
from pagetwin.simulator.fast_forward.admission import admits_nothing
from pagetwin.simulator.fast_forward.ending import first_stop
from pagetwin.simulator.sequence import TwinSequence
from pagetwin.simulator.state import State
from pagetwin.simulator.step_clock import StepClock, alone_line, decode_parts
from pagetwin.simulator.token_source import ScriptedTokens


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps that only decode: `rows` in plan order, at most `num_steps` of them."""

    rows: tuple[TwinSequence, ...]
    num_steps: int
    pace: "Pace"
    num_context_tokens: int
    """Tokens that the first step sees."""
    num_repeated_tokens: int
    first_takes: tuple[int, ...]
    """For each row the first step, from 0, whose plan takes a block for it."""
    block_size: int

    def duration(self, num_steps: int) -> int:
        """Ticks of the first `num_steps` steps; each sees a token more of every row."""
        if num_steps == 0:
            return 0
        later, pace = num_steps - 1, self.pace
        seen = later * self.num_context_tokens + len(self.rows) * (num_steps * later // 2)
        return pace.first + later * pace.base + pace.slope * seen

    def step_ticks(self, step: int) -> int:
        """Ticks of step number `step`, from 0."""
        if step == 0:
            return self.pace.first
        return self.pace.base + self.pace.slope * (self.num_context_tokens + step * len(self.rows))

    def parts(self, step: int) -> StepComposition:
        """What that step is made of; the one after the last, too."""
        count = len(self.rows)
        return decode_parts(count, self.num_context_tokens + step * count, self.num_repeated_tokens)

    @property
    def growth(self) -> int:
        """By how much each step but the first is longer than the one before."""
        return self.pace.slope * len(self.rows)

    def steps_before(self, ticks: int) -> int:
        """How many of the steps end less than `ticks` after the start."""
        low, high = 0, self.num_steps
        while low < high:
            middle = (low + high + 1) // 2
            if self.duration(middle) < ticks:
                low = middle
            else:
                high = middle - 1
        return low

    def num_takes(self, num_plans: int) -> int:
        """Blocks that the first `num_plans` plans take."""
        return _num_takes(self.first_takes, num_plans, self.block_size)


class Pace(NamedTuple):
    """How fast the steps of a stretch follow one another."""

    first: int
    """Ticks of the first step."""
    base: int
    slope: int
    """Of the line on which the others lie."""
    num_steps: int | None
    """How many keep to it; None: all."""


def find_stretch(
    state: State, tokens: ScriptedTokens, cost_model: CostModel, clock: StepClock, now: int
) -> Stretch | None:
    """The longest stretch that may follow now, before a step begins; None if there is none.

    With asynchronous stepping the step in flight is its first, and each plan is one ahead.
    """
    if state.rows_to_drop or state.requests_to_forget or not state.running:
        return None
    if len(state.flights) != int(state.scheduler.async_scheduling):
        return None
    if state.flights and not _only_decodes(state.flights[0].plan, state):
        return None
    rows = tuple(state.running)
    if not all(_decodes(state, seq) for seq in rows) or not admits_nothing(state):
        return None
    block_size, lookahead = state.cache.block_size, state.scheduler.num_lookahead_slots
    first_takes = tuple(
        len(seq.table) * block_size - lookahead - seq.num_planned_computed for seq in rows
    )
    num_steps = min(_steps_left(seq) for seq in rows)
    num_steps = _steps_without_shortage(first_takes, num_steps, state)
    for seq in rows:
        num_steps = _steps_without_stop(seq, tokens, num_steps)
    if num_steps < 1:
        return None
    context = sum(seq.num_computed_tokens + 1 for seq in rows)
    repeated = min(state.num_repeated_tokens, context)
    if state.flights:
        pace = _pace_behind(cost_model, clock, len(rows), context, repeated, now)
    else:
        pace = _pace_alone(cost_model, len(rows), context, repeated)
    if pace is None:
        return None
    if pace.num_steps is not None:
        num_steps = min(num_steps, pace.num_steps)
    return Stretch(rows, num_steps, pace, context, repeated, first_takes, block_size)


def _pace_alone(cost_model: CostModel, count: int, context: int, repeated: int) -> Pace:
    base, slope, last = alone_line(cost_model, count, context, repeated)
    num_steps = None if last is None else (last - context) // count + 1
    return Pace(base + slope * context, base, slope, num_steps)


def _pace_behind(
    cost_model: CostModel, clock: StepClock, count: int, context: int, repeated: int, now: int
) -> Pace | None:
    """Of steps each of which is launched while the one before is computed; None if the host is
    behind."""
    before, launch, after = cost_model.host_ticks(decode_parts(count, context, repeated))
    context += count
    base, slope, last = cost_model.decode_line(count, context, repeated)
    if clock.device_end < now + before + launch:
        return None
    if base + slope * context < after + before + launch:
        return None
    num_steps = None if last is None else (last - context) // count + 2
    return Pace(clock.device_end + after - now, base, slope, num_steps)


def _only_decodes(plan: StepPlan, state: State) -> bool:
    """The plan in flight is one of the stretch: the running sequences, and nothing besides."""
    extra = (
        plan.dropped
        or plan.ended_requests
        or plan.introduced
        or plan.preempted
        or plan.copies
        or plan.swap_ins
        or plan.swap_outs
        or plan.new_requests
    )
    return not extra and [row.seq_id for row in plan.scheduled] == [
        seq.seq_id for seq in state.running
    ]


def _decodes(state: State, seq: TwinSequence) -> bool:
    """It decodes in the step in flight, if there is one, and in the next."""
    return decodes(state, seq) and seq.num_planned_tokens() - seq.num_planned_computed == 1


def _steps_left(seq: TwinSequence) -> int:
    """Steps that leave it short of every limit on its length (P5.1a)."""
    return seq.group.length_cap - len(seq.token_ids) - 1


def _num_takes(first_takes: tuple[int, ...], num_plans: int, block_size: int) -> int:
    return sum(
        (num_plans - 1 - first) // block_size + 1 for first in first_takes if first < num_plans
    )


def _steps_without_shortage(first_takes: tuple[int, ...], num_steps: int, state: State) -> int:
    """The most steps whose plans the free blocks suffice for."""
    low, high = 0, num_steps
    while low < high:
        middle = (low + high + 1) // 2
        if _num_takes(first_takes, middle, state.cache.block_size) <= state.pool.num_free:
            low = middle
        else:
            high = middle - 1
    return low


def _steps_without_stop(seq: TwinSequence, tokens: ScriptedTokens, num_steps: int) -> int:
    """The most steps before a token that ends the sequence; the script tells them in advance."""
    start = seq.num_output_tokens(len(seq.token_ids))
    positions = range(start, start + num_steps)
    stop = first_stop(seq.group.request, seq.sample_index, positions, tokens)
    return num_steps if stop is None else stop - start
