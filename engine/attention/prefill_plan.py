"""The work list of prefill attention: the rows of a step's chunks, cut into tiles, on the host."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def plan_prefill(
    query_lens: Sequence[int] | NDArray[np.int32],
    seq_lens: Sequence[int] | NDArray[np.int32],
    table_rows: Sequence[int] | NDArray[np.int32],
    block_m: int,
) -> NDArray[np.int32]:
    """The tiles of all sequences that have more than one row, as kernels.PrefillWork wants them.

    By sequence: rows in this step, tokens with this step's, row in the block tables. A sequence of
    seq_lens 0 is padding. Tiles that read most keys come first, so that the last ones to start are
    short; equals stay in the order of the sequences.

    Returns int32 [num_tiles, 4]: first row, its position, row in the block tables, rows.
    """
    rows = np.asarray(query_lens, dtype=np.int32)
    lengths = np.asarray(seq_lens, dtype=np.int32)
    first_rows = np.cumsum(rows, dtype=np.int32) - rows
    num_tiles = np.where((rows > 1) & (lengths > 0), -(-rows // block_m), 0)
    sequence = np.repeat(np.arange(len(rows)), num_tiles)
    nth = np.arange(len(sequence)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    done = nth * block_m
    tiles = np.empty((len(sequence), 4), dtype=np.int32)
    tiles[:, 0] = first_rows[sequence] + done
    tiles[:, 1] = (lengths - rows)[sequence] + done
    tiles[:, 2] = np.asarray(table_rows, dtype=np.int32)[sequence]
    tiles[:, 3] = np.minimum(block_m, rows[sequence] - done)
    order: NDArray[np.intp] = np.argsort(-(tiles[:, 1] + tiles[:, 3]), kind="stable")
    return tiles[order]
