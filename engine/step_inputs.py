"""Decides what the model is fed in a step: which token stands where, and in which slot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pagetwin.engine.config import CacheConfig
from pagetwin.engine.step import ScheduledSequence


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's tokens, flattened in the order of the plan: no padding anywhere.

    Attributes:
        input_ids: int64 [num_tokens].
        positions: int64 [num_tokens], absolute: prompt token 0 has position 0.
        slot_mapping: int64 [num_tokens], block_id * block_size + offset.
        query_start_loc: int32 [num_seqs + 1], where each sequence's tokens begin.
        seq_lens: int32 [num_seqs], tokens of each sequence, this step's included.
        block_tables: int32 [num_seqs, max_blocks], as wide as the longest sequence needs;
            0 where a sequence has no block, and where no token of the step sees the block.
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slot_mapping: NDArray[np.int64]
    query_start_loc: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    block_tables: NDArray[np.int32]

    @property
    def max_query_len(self) -> int:
        return int(np.diff(self.query_start_loc).max(initial=0))

    @property
    def max_seq_len(self) -> int:
        return int(self.seq_lens.max(initial=0))


def build_inputs_from_scratch(
    scheduled: Sequence[ScheduledSequence],
    tokens: Mapping[str, Sequence[int]],
    block_tables: Mapping[str, Sequence[int]],
    cache: CacheConfig,
) -> StepInputs:
    """The plain twin of `InputBatch.build_inputs`: token by token, from full knowledge.

    `tokens` and `block_tables` hold, by sequence id, every known token and the whole table.
    """
    block_size, window = cache.block_size, cache.sliding_window
    input_ids, positions, slots = [], [], []
    query_start_loc, seq_lens, tables = [0], [], []
    ends = [s.num_computed_tokens + s.num_scheduled_tokens for s in scheduled]
    width = -(-max(ends, default=0) // block_size)
    for sequence, end in zip(scheduled, ends, strict=True):
        table = block_tables[sequence.seq_id]
        for position in range(sequence.num_computed_tokens, end):
            input_ids.append(tokens[sequence.seq_id][position])
            positions.append(position)
            block, offset = divmod(position, block_size)
            slots.append(table[block] * block_size + offset)
        query_start_loc.append(len(positions))
        seq_lens.append(end)
        # Block i holds the positions below (i + 1) * block_size; the first one that is seen is
        # that of the step's first token, less the window, plus one.
        first_seen = sequence.num_computed_tokens - window + 1 if window else 0
        tables.append(
            [
                table[i] if i < len(table) and (i + 1) * block_size > first_seen else 0
                for i in range(width)
            ]
        )
    return StepInputs(
        input_ids=np.array(input_ids, np.int64),
        positions=np.array(positions, np.int64),
        slot_mapping=np.array(slots, np.int64),
        query_start_loc=np.array(query_start_loc, np.int32),
        seq_lens=np.array(seq_lens, np.int32),
        block_tables=np.array(tables, np.int32).reshape(len(scheduled), width),
    )
