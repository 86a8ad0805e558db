"""Decides how a sequence gives up its blocks: docs/policy.md P3.2 and P3.3."""

from pagetwin.engine.step import BlockCopy, Preemption
from pagetwin.simulator.memory import NULL_BLOCK
from pagetwin.simulator.plan_builder import PlanBuilder
from pagetwin.simulator.sequence import TwinSequence


def preempt(builder: PlanBuilder, victim: TwinSequence) -> None:
    """P3.2 and P3.3: frees its blocks, and queues it to return."""
    wants_swap = builder.state.scheduler.preemption_mode == "swap"
    # P2.8b: beams are preempted by recompute only.
    swapped = wants_swap and not victim.group.is_beam_search and _swap_out(builder, victim)
    builder.state.pool.release_table(victim.table)
    if swapped:
        builder.state.totals.preemptions_swap += 1
    else:
        victim.num_computed_tokens = 0  # P3.2
        builder.state.totals.preemptions_recompute += 1
    builder.state.stop(victim, swapped=swapped)
    builder.preempted.append(Preemption(victim.seq_id, "swap" if swapped else "recompute"))


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
