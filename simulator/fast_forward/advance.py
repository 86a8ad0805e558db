"""Decides what the steps of a stretch leave behind, without planning them.

Only the steps that take, fill or release a block touch the pool, in the order in which stepping
does: within a step first the plan's takes in running order, then, row by row, the block that the
step filled enters the cache and the one that fell out of the window is released (P5.1b).
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from pagetwin.engine.step import ScheduledSequence, StepPlan
from pagetwin.simulator.fast_forward.stretch import Stretch
from pagetwin.simulator.memory import NULL_BLOCK
from pagetwin.simulator.sequence import TwinSequence, prefix_keys
from pagetwin.simulator.state import Flight, State
from pagetwin.simulator.token_source import ScriptedTokens


class Kind(IntEnum):
    """What happens to a block; takes are of the plan, the others of the step's end."""

    TAKE = 0
    FILL = 1
    RELEASE = 2


class BlockEvent(NamedTuple):
    """Sorts into the order in which stepping does it."""

    step: int
    """Of the stretch, from 0."""
    is_at_end: bool
    row: int
    kind: Kind
    entry: int
    """Place in the block table."""


def block_events(state: State, stretch: Stretch, num_steps: int) -> list[BlockEvent]:
    """Everything that `num_steps` steps of the stretch do to blocks, in order."""
    block_size = state.cache.block_size
    events: list[BlockEvent] = []
    for row, seq in enumerate(stretch.rows):
        first = stretch.first_takes[row]
        for count, step in enumerate(range(first, num_steps, block_size)):
            events.append(BlockEvent(step, False, row, Kind.TAKE, len(seq.table) + count))
        computed = seq.num_computed_tokens
        if state.cache.enable_prefix_caching:
            first = block_size - 1 - computed % block_size
            for count, step in enumerate(range(first, num_steps, block_size)):
                index = computed // block_size + count
                events.append(BlockEvent(step, True, row, Kind.FILL, index))
        window = state.cache.sliding_window
        if window > 0:
            # Block i falls out in the step that makes c >= (i + 1) * B + w - 1 (P4.7).
            num_out = max(0, computed - window + 1) // block_size
            first = (num_out + 1) * block_size + window - 2 - computed
            for count, step in enumerate(range(first, num_steps, block_size)):
                events.append(BlockEvent(step, True, row, Kind.RELEASE, num_out + count))
    events.sort()
    return events


def apply_event(state: State, seq: TwinSequence, event: BlockEvent) -> None:
    """Does what the event says; its tokens must be there already."""
    if event.kind is Kind.TAKE:
        seq.table.append(state.pool.take())
    elif event.kind is Kind.FILL:
        end = event.entry + 1
        keys = prefix_keys(seq, end, block_size=state.cache.block_size, tags=state.tags)
        state.pool.cache(seq.table[event.entry], keys[event.entry])
    elif seq.table[event.entry] != NULL_BLOCK:
        state.pool.release(seq.table[event.entry])
        seq.table[event.entry] = NULL_BLOCK


def append_tokens(
    stretch: Stretch, num_steps: int, tokens: ScriptedTokens, *, with_values: bool
) -> None:
    """Gives each row its tokens. Without values they are zeros, for where nobody reads them."""
    for seq in stretch.rows:
        request, sample = seq.group.request, seq.sample_index
        if with_values:
            start = seq.num_output_tokens(len(seq.token_ids))
            seq.token_ids.extend(
                tokens.token(request, sample, position)
                for position in range(start, start + num_steps)
            )
        else:
            seq.token_ids.extend([0] * num_steps)
        tokens.advance(seq.seq_id, num_steps)


def count_computed(state: State, stretch: Stretch, num_steps: int) -> StepPlan | None:
    """Moves the rows on; returns the plan in flight afterwards, if steps are asynchronous."""
    for seq in stretch.rows:
        seq.num_computed_tokens += num_steps
        seq.num_planned_computed += num_steps
    if not state.flights:
        return None
    step = state.flights[0].plan.step + num_steps
    plan = StepPlan(step=step, scheduled=tuple(_rows_in_flight(stretch)))
    state.flights[:] = [Flight(plan, stretch.rows, ())]
    return plan


def _rows_in_flight(stretch: Stretch) -> Iterator[ScheduledSequence]:
    """What the last plan says of each row, but for the blocks that it took: they are taken."""
    for seq in stretch.rows:
        yield ScheduledSequence(seq.seq_id, seq.num_computed_tokens, 1, samples=True)
