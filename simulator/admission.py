"""Decides who joins the running sequences: docs/policy.md P2.3, P2.4 and P3.3b."""

from typing import NamedTuple

from pagetwin.engine.step import BlockCopy
from pagetwin.simulator.memory import NULL_BLOCK, ROOT
from pagetwin.simulator.plan_builder import PlanBuilder
from pagetwin.simulator.sequence import TwinSequence, block_extras, prefix_keys


class Hits(NamedTuple):
    """What the prefix cache has of a sequence: full blocks, then m tokens of `source`."""

    full: list[int]
    source: int = NULL_BLOCK
    num_partial_tokens: int = 0


def admit(builder: PlanBuilder) -> None:
    """P2.3: swapped-out ones in order, then waiting ones; the first that fails ends it."""
    for seq in list(builder.state.swapped):
        if not _has_place(builder, seq) or not _swap_in(builder, seq):
            return
    for seq in builder.state.waiting:
        if not _has_place(builder, seq) or not _admit_waiting(builder, seq):
            return


def _has_place(builder: PlanBuilder, seq: TwinSequence) -> bool:
    running, limit = builder.state.num_running, builder.state.scheduler.max_num_seqs
    return builder.budget > 0 and running + seq.weight <= limit


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


def _admit_waiting(builder: PlanBuilder, seq: TwinSequence) -> bool:
    """P2.4; False, and nothing changed, if it fits neither with a partial hit nor without."""
    hits = _look_up(builder, seq)
    if hits.num_partial_tokens > 0 and _admit_with(builder, seq, hits):
        return True
    return _admit_with(builder, seq, Hits(hits.full))


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
    seq.num_computed_tokens = num_hits
    new = builder.append_blocks(seq, num_tokens)
    if hits.num_partial_tokens > 0:
        builder.pins.append(hits.source)
        builder.copies.append(BlockCopy(hits.source, new[0]))
        state.totals.partial_hits += 1
    if _looks_up(builder, seq):
        state.totals.prefix_queries += len(seq.token_ids)
        state.totals.prefix_hit_tokens += num_hits
    state.start(seq)
    builder.schedule(seq, num_tokens, new, num_cached_tokens=num_hits)
    return True


def _look_up(builder: PlanBuilder, seq: TwinSequence) -> Hits:
    """P2.4 and P2.4a: full hits and the best partial hit; at least one token is left."""
    if not _looks_up(builder, seq):
        return Hits([])
    block_size, tags = builder.state.cache.block_size, builder.state.tags
    most_full = (len(seq.token_ids) - 1) // block_size
    keys = prefix_keys(seq, most_full, block_size=block_size, tags=tags)
    full = builder.state.pool.full_hits(keys)
    if not builder.state.cache.enable_partial_hits:
        return Hits(full)
    start = len(full) * block_size
    most = min(block_size - 1, len(seq.token_ids) - 1 - start)
    source, num_partial_tokens = builder.state.pool.partial_hit(
        keys[len(full) - 1].digest if full else ROOT,
        block_extras(seq.group.request, len(full), block_size=block_size, tags=tags),
        seq.token_ids[start : start + most],
    )
    return Hits(full, source, num_partial_tokens)


def _looks_up(builder: PlanBuilder, seq: TwinSequence) -> bool:
    wants_prompt_logprobs = seq.group.request.sampling_params.prompt_logprobs is not None
    return builder.state.cache.enable_prefix_caching and not wants_prompt_logprobs
