"""Decides what the model is fed in a step: which token stands where, and in which slot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pagetwin.engine.step import ScheduledSequence

_Integer = TypeVar("_Integer", np.int32, np.int64)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's tokens, flattened in the order of the plan: no padding anywhere.

    Attributes:
        input_ids: int64 [num_tokens]; -1 for a token that the step before samples (P5.3a).
        positions: int64 [num_tokens], absolute: prompt token 0 has position 0.
        slot_mapping: int64 [num_tokens], block_id * block_size + offset.
        query_start_loc: int32 [num_seqs + 1], where each sequence's tokens begin.
        seq_lens: int32 [num_seqs], tokens of each sequence, this step's included.
        rows: int32 [num_seqs], the row of each sequence in the batch and in its block tables.
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slot_mapping: NDArray[np.int64]
    query_start_loc: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    rows: NDArray[np.int32]

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def token_rows(self) -> NDArray[np.int32]:
        """int32 [num_tokens]: the row of each token's sequence."""
        return np.repeat(self.rows, np.diff(self.query_start_loc))

    @property
    def num_seqs(self) -> int:
        return len(self.seq_lens)

    def of_rows(self, index: NDArray[np.int64]) -> "StepInputs":
        """These tokens alone, each as the only one of a sequence that ends with it."""
        return StepInputs(
            input_ids=self.input_ids[index],
            positions=self.positions[index],
            slot_mapping=self.slot_mapping[index],
            query_start_loc=np.arange(len(index) + 1, dtype=np.int32),
            seq_lens=(self.positions[index] + 1).astype(np.int32),
            rows=self.token_rows[index],
        )

    @property
    def max_query_len(self) -> int:
        return int(np.diff(self.query_start_loc).max(initial=0))

    @property
    def max_seq_len(self) -> int:
        return int(self.seq_lens.max(initial=0))


def build_inputs_from_scratch(
    scheduled: Sequence[ScheduledSequence],
    rows: Mapping[str, int],
    tokens: Mapping[str, Sequence[int]],
    block_tables: Mapping[str, Sequence[int]],
    block_size: int,
) -> StepInputs:
    """The plain twin of `InputBatch.build_inputs`: token by token, from full knowledge.

    `rows`, `tokens` and `block_tables` hold, by sequence id, the row in the batch, every known
    token and the whole table.
    """
    input_ids, positions, slots = [], [], []
    query_start_loc, seq_lens = [0], []
    for sequence in scheduled:
        known, table = tokens[sequence.seq_id], block_tables[sequence.seq_id]
        end = sequence.num_computed_tokens + sequence.num_scheduled_tokens
        for position in range(sequence.num_computed_tokens, end):
            input_ids.append(known[position] if position < len(known) else -1)
            positions.append(position)
            block, offset = divmod(position, block_size)
            slots.append(table[block] * block_size + offset)
        query_start_loc.append(len(positions))
        seq_lens.append(end)
    return StepInputs(
        input_ids=np.array(input_ids, np.int64),
        positions=np.array(positions, np.int64),
        slot_mapping=np.array(slots, np.int64),
        query_start_loc=np.array(query_start_loc, np.int32),
        seq_lens=np.array(seq_lens, np.int32),
        rows=np.array([rows[sequence.seq_id] for sequence in scheduled], np.int32),
    )


def pad_decodes(inputs: StepInputs, size: int) -> StepInputs:
    """A step of `size` sequences with one token each, the step's own first.

    A padding sequence is empty: no slot is written for it, and it attends to nothing.
    """
    missing = size - inputs.num_seqs
    assert missing >= 0, f"{inputs.num_seqs} sequences are more than {size}"
    assert inputs.num_tokens == inputs.num_seqs, "only single tokens can be padded"

    def padded(array: NDArray[_Integer], fill: int) -> NDArray[_Integer]:
        return np.concatenate((array, np.full(missing, fill, array.dtype)))

    return StepInputs(
        input_ids=padded(inputs.input_ids, 0),
        positions=padded(inputs.positions, 0),
        slot_mapping=padded(inputs.slot_mapping, -1),
        query_start_loc=np.arange(size + 1, dtype=np.int32),
        seq_lens=padded(inputs.seq_lens, 0),
        rows=padded(inputs.rows, 0),
    )


def dummy_chunks(query_lens: NDArray[np.int64]) -> StepInputs:
    """A step of whole prompts of these lengths, all tokens 0, that writes no slot."""
    positions = np.concatenate([np.arange(length) for length in query_lens] or [np.arange(0)])
    return StepInputs(
        input_ids=np.zeros_like(positions),
        positions=positions,
        slot_mapping=np.full_like(positions, -1),
        query_start_loc=np.concatenate(([0], query_lens.cumsum())).astype(np.int32),
        seq_lens=query_lens.astype(np.int32),
        rows=np.zeros(len(query_lens), np.int32),
    )
