"""Decides who gives up its blocks, and how: docs/policy.md P3."""

from pagetwin.engine.step import BlockCopy, Preemption
from pagetwin.simulator.memory import NULL_BLOCK
from pagetwin.simulator.plan_builder import PlanBuilder
from pagetwin.simulator.sequence import TwinSequence
from pagetwin.simulator.state import State


def preempt_due(builder: PlanBuilder) -> None:
    """P3.5: what somebody asked for, the last in running first."""
    due = builder.state.due_preemptions
    victims = [seq for seq in builder.state.running if seq.group.request.request_id in due]
    for victim in reversed(victims):
        _preempt(builder, victim)
    due.clear()


def preempt_one(builder: PlanBuilder) -> None:
    """P3.1: whoever must make room."""
    _preempt(builder, _victim(builder.state))


def _preempt(builder: PlanBuilder, victim: TwinSequence) -> None:
    """Frees the victim's blocks, and queues it to return (P3.2, P3.3)."""
    makes_way = victim.rests
    wants_swap = builder.state.scheduler.preemption_mode == "swap"
    # P2.8b: beams are preempted by recompute only.
    swapped = wants_swap and not victim.group.is_beam_search and _swap_out(builder, victim)
    builder.state.pool.release_table(victim.table)
    if swapped:
        builder.state.totals.preemptions_swap += 1
    else:
        victim.num_computed_tokens = victim.num_planned_computed = 0  # P3.2
        builder.state.totals.preemptions_recompute += 1
    builder.state.stop(victim, swapped=swapped, makes_way=makes_way)
    builder.preempted.append(Preemption(victim.seq_id, "swap" if swapped else "recompute"))


def _victim(state: State) -> TwinSequence:
    """P3.1a: the last beam that cannot go on, if there is one; P3.1: the last of running."""
    stuck = [seq for seq in state.running if seq.rests and not seq.group.is_running]
    return (stuck or state.running)[-1]


def _swap_out(builder: PlanBuilder, victim: TwinSequence) -> bool:
    """P3.3a; False, and nothing changed, if the host pool has no room."""
    copied = {copy.source: copy.destination for copy in builder.swap_outs}
    num_entries = -(-victim.num_computed_tokens // builder.state.cache.block_size)
    entries = victim.table[:num_entries]
    missing = [block for block in entries if block != NULL_BLOCK and block not in copied]
    if len(missing) > builder.state.host.num_free:
        return False
    for block_id in entries:
        if block_id == NULL_BLOCK:
            victim.host_table.append(None)
        elif block_id in copied:
            builder.state.host.hold(copied[block_id])
            victim.host_table.append(copied[block_id])
        else:
            host_id = builder.state.host.take()
            builder.swap_outs.append(BlockCopy(block_id, host_id))
            victim.host_table.append(host_id)
    return True
