"""Decides how a run that was only counted goes on with a plain replica: nothing is lost.

What was counted becomes what it stands for: tables and tokens of the running sequences, the free
queue in its order, and the cached contents under their keys. Tokens are asked of the script.
"""

from pagetwin.simulator.fast_forward.counted import CountedReplica
from pagetwin.simulator.fast_forward.counted_sequence import CountedSequence
from pagetwin.simulator.memory import BlockPool
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.sequence import TwinGroup, TwinSequence, prefix_keys
from pagetwin.simulator.state import State
from pagetwin.simulator.timekeeper import Timekeeper, Watch
from pagetwin.simulator.token_source import ScriptedTokens


def hand_over(counted: CountedReplica, tokens: ScriptedTokens) -> Replica:
    """A replica that stands where the counted one does, before the step that begins at `now`.

    Those that came during that step (`counted.late`) are still to be submitted.
    """
    replica = Replica(counted.cache, counted.scheduler)
    replica.count_plans(counted.num_steps)
    state = replica.state
    _fill_pool(state, counted, tokens)
    for seq in counted.running:
        _start(state, counted, seq, tokens)
    for seq in counted.waiting:
        state.submit(seq.request)
    state.totals.prefix_queries = counted.num_prefix_queries
    state.totals.finished = counted.num_finished
    return replica


def hand_over_times(counted: CountedReplica, times: Timekeeper) -> None:
    """The same for what requests have seen."""
    live = [seq for seq in counted.live.values() if seq not in counted.late]
    times.resume(
        [_watch(seq, counted.num_steps) for seq in live],
        num_submitted=counted.num_submitted - len(counted.late),
        num_steps=counted.num_steps,
        busy=counted.busy_ticks,
        end=counted.last_end,
    )
    times.census = counted.census


def _fill_pool(state: State, counted: CountedReplica, tokens: ScriptedTokens) -> None:
    pool: BlockPool = state.pool
    counted.pool.account()
    pool.num_evictions = counted.pool.num_evictions
    pool.free.clear()
    pool.free.update(dict.fromkeys(counted.pool.free))
    for request, block_ids in counted.pool.cached_runs():
        group = state.new_group(request)
        num_tokens = len(block_ids) * state.cache.block_size
        seq = TwinSequence(group, 0, _first_tokens(group, num_tokens, tokens), table=[*block_ids])
        _cache_full_blocks(state, seq, len(block_ids))


def _start(
    state: State, counted: CountedReplica, seq: CountedSequence, tokens: ScriptedTokens
) -> None:
    num_tokens = seq.num_prompt_tokens + seq.num_outputs(counted.num_steps)
    group = state.new_group(seq.request)
    group.was_scheduled = True
    twin = TwinSequence(
        group,
        0,
        _first_tokens(group, num_tokens, tokens),
        num_computed_tokens=seq.num_computed(counted.num_steps),
        table=list(seq.block_table),
        status="running",
    )
    group.sequences.append(twin)
    state.groups[seq.request.request_id] = group
    state.running.append(twin)
    state.rows_held.add(twin.seq_id)
    state.rows_valid.add(twin.seq_id)
    for block_id in twin.table:
        state.pool.holders[block_id] = 1
    if state.cache.enable_prefix_caching:
        _cache_full_blocks(state, twin, twin.num_computed_tokens // state.cache.block_size)
    tokens.resume(seq.request, num_tokens)


def _first_tokens(group: TwinGroup, num_tokens: int, tokens: ScriptedTokens) -> list[int]:
    """The first tokens of the request, prompt and output."""
    request = group.request
    num_outputs = max(0, num_tokens - request.num_prompt_tokens)
    outputs = [tokens.token(request, 0, position) for position in range(num_outputs)]
    return [*request.prompt_token_ids[:num_tokens], *outputs]


def _cache_full_blocks(state: State, seq: TwinSequence, num_blocks: int) -> None:
    keys = prefix_keys(seq, num_blocks, block_size=state.cache.block_size, tags=state.tags)
    for block_id, key in zip(seq.table[:num_blocks], keys, strict=True):
        state.pool.cache(block_id, key)


def _watch(seq: CountedSequence, num_steps: int) -> Watch:
    num_outputs = seq.num_outputs(num_steps)
    return Watch(
        seq.request,
        seq.number,
        seq.submitted,
        first_scheduled=seq.first_scheduled,
        first_token=seq.first_token if num_outputs else None,
        outputs={f"{seq.request.request_id}/0": num_outputs} if num_outputs else {},
    )
