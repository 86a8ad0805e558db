"""Decides who joins the running sequences: docs/policy.md P2.3, P2.4 and P3.3b."""

from typing import NamedTuple

from pagetwin.engine.step import BlockCopy
from pagetwin.simulator.memory import NULL_BLOCK
from pagetwin.simulator.plan_builder import PlanBuilder
from pagetwin.simulator.prefix_key import ROOT
from pagetwin.simulator.sequence import TwinSequence, block_extras, prefix_keys
from pagetwin.simulator.state import State
from pagetwin.simulator.under_way import BlocksUnderWay


class Hits(NamedTuple):
    """What the prefix cache has of a sequence: full blocks, then m tokens of `source`."""

    full: list[int]
    source: int = NULL_BLOCK
    num_partial_tokens: int = 0


def admit(builder: PlanBuilder) -> None:
    """P2.3: swapped-out ones in order, then waiting ones; the first that fails ends it."""
    for seq in list(builder.state.swapped):
        if not _has_place(builder, seq.weight) or not _swap_in(builder, seq):
            return
    waiting = builder.state.waiting
    if not waiting:
        return
    under_way = BlocksUnderWay(builder)
    for seq in waiting:
        if not _has_place(builder, 1):
            return
        full = full_hits(builder.state, seq)
        if _is_passed_over(builder.state, seq, len(full), under_way):
            continue
        if not _has_place(builder, seq.weight) or not _admit_waiting(builder, seq, full):
            return


def looks_up(state: State, seq: TwinSequence) -> bool:
    """Whether its tokens are looked up in the prefix cache at all."""
    wants_prompt_logprobs = seq.group.request.sampling_params.prompt_logprobs is not None
    return state.cache.enable_prefix_caching and not wants_prompt_logprobs


def full_hits(state: State, seq: TwinSequence) -> list[int]:
    """P2.4: the cached blocks that its tokens begin with; at least one token is left."""
    if not looks_up(state, seq):
        return []
    block_size = state.cache.block_size
    most_full = (len(seq.token_ids) - 1) // block_size
    keys = prefix_keys(seq, most_full, block_size=block_size, tags=state.tags)
    return state.pool.full_hits(keys)


def _has_place(builder: PlanBuilder, weight: int) -> bool:
    running, limit = builder.state.num_running, builder.state.scheduler.max_num_seqs
    return builder.budget > 0 and running + weight <= limit


def _is_passed_over(
    state: State, seq: TwinSequence, num_full_hits: int, under_way: BlocksUnderWay
) -> bool:
    """P2.4e: somebody else is computing the block behind its full hits, and it may hit that."""
    if not state.scheduler.wait_for_prefix or not looks_up(state, seq):
        return False
    block_size = state.cache.block_size
    if num_full_hits == (len(seq.token_ids) - 1) // block_size:
        return False
    keys = prefix_keys(seq, num_full_hits + 1, block_size=block_size, tags=state.tags)
    return keys[num_full_hits] in under_way


def _swap_in(builder: PlanBuilder, seq: TwinSequence) -> bool:
    """P3.3b; False, and nothing changed, if it does not fit."""
    pool = builder.state.pool
    num_tokens = builder.share(seq, builder.budget)
    needed = builder.state.blocks_for(seq.num_computed_tokens + num_tokens)
    needed -= seq.host_table.count(None)
    if num_tokens == 0 or pool.num_free - needed < builder.state.watermark:
        return False
    for host_id in seq.host_table:
        if host_id is None:
            seq.table.append(NULL_BLOCK)
        else:
            seq.table.append(pool.take())
            builder.swap_ins.append(BlockCopy(host_id, seq.table[-1]))
    new = builder.append_blocks(seq, num_tokens)
    builder.state.host.release_table(seq.host_table)
    builder.state.start(seq)
    builder.schedule(seq, num_tokens, new)
    return True


def _admit_waiting(builder: PlanBuilder, seq: TwinSequence, full: list[int]) -> bool:
    """P2.4; False, and nothing changed, if it fits neither with a partial hit nor without."""
    hits = _with_partial_hit(builder.state, seq, full)
    if hits.num_partial_tokens > 0 and _admit_with(builder, seq, hits):
        return True
    return _admit_with(builder, seq, Hits(full))


def _admit_with(builder: PlanBuilder, seq: TwinSequence, hits: Hits) -> bool:
    """P2.4, P2.4c, P2.4d; False, and nothing changed, if it does not fit."""
    state, pool, knobs = builder.state, builder.state.pool, builder.state.scheduler
    reused = hits.full + ([hits.source] if hits.num_partial_tokens > 0 else [])
    num_hits = len(hits.full) * state.cache.block_size + hits.num_partial_tokens
    behind = len(seq.token_ids) - num_hits
    num_tokens = min(behind, builder.budget)
    if knobs.long_prefill_token_threshold > 0:
        num_tokens = min(num_tokens, knobs.long_prefill_token_threshold)
    if not knobs.enable_chunked_prefill and num_tokens < behind:
        return False
    needed = state.blocks_for(num_hits + num_tokens) - len(hits.full)
    if pool.num_free - pool.num_free_among(reused) - needed < state.watermark:
        return False
    for block_id in reused:
        pool.hold(block_id)
    seq.table.extend(hits.full)
    seq.num_computed_tokens = seq.num_planned_computed = num_hits
    new = builder.append_blocks(seq, num_tokens)
    if hits.num_partial_tokens > 0:
        builder.pins.append(hits.source)
        builder.copies.append(BlockCopy(hits.source, new[0]))
        state.totals.partial_hits += 1
    if looks_up(state, seq):
        state.totals.prefix_queries += len(seq.token_ids)
        state.totals.prefix_hit_tokens += num_hits
    state.start(seq)
    builder.schedule(seq, num_tokens, new, num_cached_tokens=num_hits)
    return True


def _with_partial_hit(state: State, seq: TwinSequence, full: list[int]) -> Hits:
    """P2.4a: those full hits, and the best partial one behind them; at least one token is left."""
    if not state.cache.enable_partial_hits or not looks_up(state, seq):
        return Hits(full)
    block_size, tags = state.cache.block_size, state.tags
    start = len(full) * block_size
    most = min(block_size - 1, len(seq.token_ids) - 1 - start)
    source, num_partial_tokens = state.pool.partial_hit(
        seq.keys[len(full) - 1].digest if full else ROOT,
        block_extras(seq.group.request, len(full), block_size=block_size, tags=tags),
        seq.token_ids[start : start + most],
    )
    return Hits(full, source, num_partial_tokens)
