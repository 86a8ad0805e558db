"""Decides for how long a sequence decodes and nothing else happens to it.

Most rows of most steps are like that: one more token, in a block that the sequence holds alone and
that the token does not fill. What a step does with such a row is known beforehand, so planning and
closing need not ask again, token by token.
"""

from pagetwin.simulator.sequence import TwinSequence
from pagetwin.simulator.state import State


def decodes(state: State, seq: TwinSequence) -> bool:
    """Whether it has an output token, lacks one step for each new one, is known to the executor,
    and writes no block that others hold."""
    is_plain = not (seq.group.is_beam_search or seq.group.will_split())
    num_tokens = len(seq.token_ids)
    if not is_plain or num_tokens <= seq.group.num_prompt_tokens:
        return False
    if num_tokens - seq.num_computed_tokens != 1 or seq.seq_id not in state.rows_valid:
        return False
    return not state.holds_shared(seq, seq.num_computed_tokens // state.cache.block_size)


def quiet_until(state: State, seq: TwinSequence) -> int:
    """The computed tokens up to which every step of the running sequence gives it a token, and
    takes no block, fills none that enters the cache and meets no limit on the length; 0: none.

    It holds until the sequence leaves running: nobody else writes or shares those blocks.
    """
    if state.cache.sliding_window > 0 or not decodes(state, seq):
        return 0
    block_size = state.cache.block_size
    # The step at c gives the token number c + 2.
    end = min(seq.group.length_cap - 2, len(seq.table) * block_size - state.lookahead)
    if state.cache.enable_prefix_caching:
        end = min(end, (seq.num_computed_tokens // block_size + 1) * block_size - 1)
    return end
