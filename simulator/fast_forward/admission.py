"""Decides whether the queues stay shut while the running sequences only decode.

The first in line is kept out by max_num_seqs, which a stretch does not change, or by memory. The
latter stays so as long as what it has to its favour can only shrink: the free blocks do, while
nothing is released; what it finds in the prefix cache must not grow.
"""

from pagetwin.simulator.admission import full_hits, looks_up
from pagetwin.simulator.sequence import TwinSequence, prefix_keys
from pagetwin.simulator.state import State


def admits_nothing(state: State) -> bool:
    """Whether no plan of a stretch admits anybody (P2.3); False where that is not plain."""
    queue = state.swapped or state.waiting
    if not queue:
        return True
    head = queue[0]
    knobs = state.scheduler
    budget = knobs.max_num_batched_tokens - len(state.running)
    if budget <= 0 or state.num_running >= knobs.max_num_seqs:
        return True
    if knobs.wait_for_prefix and _may_gain_a_hit(state, head):
        return False  # it may be passed over (P2.4e), and keep nobody out
    if state.num_running + head.weight > knobs.max_num_seqs:
        return True
    if state.cache.sliding_window > 0:
        return False  # windows release blocks
    if head.status == "swapped":
        return _swap_in_lacks_blocks(state, head, budget)
    return _admission_lacks_blocks(state, head, budget)


def _swap_in_lacks_blocks(state: State, head: TwinSequence, budget: int) -> bool:
    """P3.3b; what it needs does not change while it waits."""
    knobs = state.scheduler
    behind = len(head.token_ids) - head.num_computed_tokens
    num_tokens = min(behind, budget, knobs.max_model_len - head.num_computed_tokens)
    if behind > 1 and knobs.long_prefill_token_threshold > 0:
        num_tokens = min(num_tokens, knobs.long_prefill_token_threshold)
    if behind > 1 and not knobs.enable_chunked_prefill and num_tokens < behind:
        return True
    needed = state.blocks_for(head.num_computed_tokens + num_tokens) - head.host_table.count(None)
    return state.pool.num_free - needed < state.watermark


def _admission_lacks_blocks(state: State, head: TwinSequence, budget: int) -> bool:
    """P2.4. With hits, only where all of its tokens would come in one step: then fewer hits need
    more blocks, and a partial hit (which needs as many, and holds its source) never fits before
    the full ones alone."""
    limit = budget
    if state.scheduler.long_prefill_token_threshold > 0:
        limit = min(limit, state.scheduler.long_prefill_token_threshold)
    num_tokens = len(head.token_ids)
    if not looks_up(state, head):
        if num_tokens > limit and not state.scheduler.enable_chunked_prefill:
            return True
        needed = state.blocks_for(min(num_tokens, limit))
        return state.pool.num_free - needed < state.watermark
    if num_tokens > limit:
        return False
    hits = full_hits(state, head)
    needed = state.blocks_for(num_tokens) - len(hits)
    if state.pool.num_free - state.pool.num_free_among(hits) - needed >= state.watermark:
        return False
    return not _may_gain_a_hit(state, head)


def _may_gain_a_hit(state: State, head: TwinSequence) -> bool:
    """Whether a block that a running sequence fills may be the one after the head's hits."""
    if head.status == "swapped" or not looks_up(state, head):
        return False
    num_hits = len(full_hits(state, head))
    return any(_fills_the_next(state, seq, head, num_hits) for seq in state.running)


def _fills_the_next(state: State, seq: TwinSequence, head: TwinSequence, num_hits: int) -> bool:
    block_size = state.cache.block_size
    index = seq.num_computed_tokens // block_size
    if index > num_hits:
        return False
    if index == 0:
        return True
    keys = prefix_keys(seq, index, block_size=block_size, tags=state.tags)
    return keys[index - 1] == head.keys[index - 1]
