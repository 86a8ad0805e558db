"""Decides how long a replica does nothing but decode the same sequences.

In such a stretch every step gives each running sequence one token, takes blocks as they fill,
and decides nothing else: nobody is admitted, preempted, forked or finished. Its steps cost a line
in the tokens that they see (`CostModel.decode_line`), and so the stretch a parabola in the number
of steps, in whole ticks.
"""

from dataclasses import dataclass

from pagetwin.engine.step import StepPlan
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.fast_forward.admission import admits_nothing
from pagetwin.simulator.fast_forward.ending import first_stop
from pagetwin.simulator.quiet import decodes
from pagetwin.simulator.sequence import TwinSequence
from pagetwin.simulator.state import State
from pagetwin.simulator.token_source import ScriptedTokens


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps that only decode: `rows` in plan order, at most `num_steps` of them."""

    rows: tuple[TwinSequence, ...]
    num_steps: int
    base: int
    slope: int
    num_context_tokens: int
    """Tokens that the first step sees."""
    first_takes: tuple[int, ...]
    """For each row the first step, from 0, whose plan takes a block for it."""
    block_size: int

    def duration(self, num_steps: int) -> int:
        """Ticks of the first `num_steps` steps; each sees a token more of every row."""
        grown = len(self.rows) * (num_steps * (num_steps - 1) // 2)
        return num_steps * self.base + self.slope * (num_steps * self.num_context_tokens + grown)

    def step_ticks(self, step: int) -> int:
        """Ticks of step number `step`, from 0."""
        return self.base + self.slope * (self.num_context_tokens + step * len(self.rows))

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


def find_stretch(state: State, tokens: ScriptedTokens, cost_model: CostModel) -> Stretch | None:
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
    base, slope = cost_model.decode_line(len(rows))
    context = sum(seq.num_computed_tokens + 1 for seq in rows)
    return Stretch(rows, num_steps, base, slope, context, first_takes, block_size)


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
    return decodes(state, seq) and seq.num_planned_tokens - seq.num_planned_computed == 1


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
