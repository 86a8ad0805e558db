"""Decides for how long a sequence decodes and nothing else happens to it.

Most rows of most steps are like that: one more token, in a block that the sequence holds alone.
What is left to ask about such a row is whether it needs another block, when it is planned, and
whether it has filled one, when it is closed.
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


def decodes_until(state: State, seq: TwinSequence) -> int:
    """The computed tokens up to which every step of the running sequence gives it a token, copies
    and releases no block, and meets no limit on the length; 0: none.

    It holds until the sequence leaves running: it writes behind what others could hit (P2.4), and
    so nobody comes to share what it writes.
    """
    if state.cache.sliding_window > 0 or not decodes(state, seq):
        return 0
    return seq.group.length_cap - 2  # the step at c gives the token number c + 2
