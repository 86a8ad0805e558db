"""Decides what the next step does: docs/policy.md P2 (one step)."""

from pagetwin.engine.step import BlockCopy
from pagetwin.simulator.admission import admit
from pagetwin.simulator.plan_builder import PlanBuilder
from pagetwin.simulator.preemption import preempt_due, preempt_one
from pagetwin.simulator.sequence import TwinSequence
from pagetwin.simulator.state import Flight, State


def plan_step(state: State, step: int) -> Flight | None:
    """Plans step number `step`, or returns None and changes nothing.

    None means that there is nothing to do, or that a result must be awaited first (P3.5a, P5.3b).
    """
    if len(state.flights) > int(state.scheduler.async_scheduling):
        return None  # P5.3a: at most one step is in flight when a plan is made
    if state.flights and state.due_preemptions:
        return None  # P3.5a
    builder = PlanBuilder(state)
    if state.flights and not _can_run_ahead(builder):
        return None
    if state.due_preemptions:
        preempt_due(builder)
    _visit_running(builder)
    if not builder.preempted:  # P2.3
        admit(builder)
    if builder.is_empty:
        if state.flights or not state.running:
            return None
        preempt_one(builder)  # P2.6a
    return builder.finish(step)


def _can_run_ahead(builder: PlanBuilder) -> bool:
    """P5.3b: the free blocks suffice for every running sequence that would get tokens."""
    budget, missing = builder.budget, 0
    for seq in builder.state.running:
        num_tokens = builder.share(seq, budget)
        budget -= num_tokens
        if num_tokens > 0:
            missing += builder.num_appended(seq, num_tokens)
            missing += len(_written_shared(builder.state, seq, num_tokens))
    return missing <= builder.state.pool.num_free


def _visit_running(builder: PlanBuilder) -> None:
    """P2.1 and P2.2."""
    state = builder.state
    for seq in list(state.running):
        if seq.num_planned_computed < seq.decodes_until and builder.schedule_token(seq):
            continue
        num_tokens = builder.share(seq, builder.budget)
        # A sequence that an earlier visit preempted is skipped.
        if seq.status != "running" or num_tokens == 0:
            continue
        appended = builder.num_appended(seq, num_tokens)
        shared = _written_shared(state, seq, num_tokens)
        while appended + len(shared) > state.pool.num_free:
            preempt_one(builder)
            if seq.status != "running":
                break
            shared = _written_shared(state, seq, num_tokens)
        else:
            replaced = _copy_shared(builder, seq, shared) if shared else []
            new = builder.append_blocks(seq, num_tokens) if appended > 0 else []
            builder.schedule(seq, num_tokens, new, replaced=replaced)


def _written_shared(state: State, seq: TwinSequence, num_tokens: int) -> list[int]:
    """Table indices of the blocks that the step writes and others hold too (P4.5)."""
    if state.pool.num_shared == 0:
        return []
    computed, table = seq.num_planned_computed, seq.table
    first = computed // state.cache.block_size
    end = min(state.blocks_for(computed + num_tokens), len(table))
    return [index for index in range(first, end) if state.pool.is_shared(table[index])]


def _copy_shared(
    builder: PlanBuilder, seq: TwinSequence, shared: list[int]
) -> list[tuple[int, int]]:
    """Copy-on-write (P4.5) of the table's entries `shared`, in table order."""
    state, replaced = builder.state, []
    for index in shared:
        source, destination = seq.table[index], state.pool.take()
        builder.copies.append(BlockCopy(source, destination))
        state.pool.release(source)
        seq.table[index] = destination
        replaced.append((index, destination))
    state.totals.cow_copies += len(replaced)
    return replaced
