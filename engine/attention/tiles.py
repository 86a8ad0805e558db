"""How one step's attention is cut into tiles of keys at absolute positions.

Tile t of a sequence is its positions [t * TILE, (t + 1) * TILE), whatever the batch, the chunk or
the block size. A row's result is made of its tiles in ascending order, and a position that it
may not see changes nothing, so the cut cannot show in the result.

Where a tile holds positions that nothing may read (beyond the sequence, before its window), the
slot of the sequence's newest token is read in their place: garbage in the cache, NaN included, is
never even loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pagetwin.engine.attention.metadata import AttentionMetadata

TILE = 128
"""Positions of a tile. Larger tiles waste work on short sequences, smaller ones on merging."""

MAX_CHUNK_ROWS = 256
"""Rows computed together: their intermediate results fit a cache of 1 MiB for 9 heads of 64."""


@dataclass(frozen=True)
class DecodeTiles:
    """The tiles of all sequences that have one row in this step, in one batch.

    The sequences stand in the order of their number of tiles, most first. The batch holds the
    first tile of each, then the second of each that has one, and so on.
    """

    rows: Tensor
    """int64 [num_sequences]: the row of each sequence, in that order."""
    tile_rows: Tensor
    """int64 [num_tiles]: the row that each tile is for."""
    counts: list[int]
    """How many sequences have a first tile, a second tile, ..."""
    slots: Tensor
    """int64 [num_tiles * TILE]: the slots to read."""
    bias: Tensor
    """[num_tiles, 1, 1, TILE] in the model's dtype: 0 where visible, else -inf."""


@dataclass(frozen=True)
class ChunkTile:
    """One tile of keys, and the rows of a chunk that see some of it."""

    first_row: int
    """Counted from the chunk's first row."""
    end_row: int
    slots: Tensor
    """int64 [TILE]: the slots to read."""
    bias: Tensor | None
    """[end_row - first_row, TILE] in the model's dtype: 0 where visible, else -inf. None: all 0."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a sequence that has several in this step, MAX_CHUNK_ROWS at most."""

    first_row: int
    num_rows: int
    tiles: list[ChunkTile]


@dataclass(frozen=True)
class StepTiles:
    """All that a step's attention reads, for layers of one sliding window."""

    decode: DecodeTiles | None
    chunks: list[Chunk]


class TilePlanner:
    """Cuts one step; `sliding_window` 0 means no window."""

    def __init__(
        self, metadata: AttentionMetadata, block_size: int, dtype: torch.dtype, sliding_window: int
    ) -> None:
        self._metadata = metadata
        self._block_size = block_size
        self._dtype = dtype
        self._window = sliding_window or metadata.max_seq_len
        self._offsets = torch.arange(TILE, device=metadata.block_tables.device)

    def plan(self) -> StepTiles:
        starts = self._metadata.query_start_loc.tolist()
        lengths = self._metadata.seq_lens.tolist()
        single: list[int] = []
        chunks: list[Chunk] = []
        for i, length in enumerate(lengths):
            num_rows = starts[i + 1] - starts[i] if length else 0
            if num_rows == 1:
                single.append(i)
            elif num_rows:
                chunks.extend(self._chunks(i, range(starts[i], starts[i + 1]), length))
        return StepTiles(self._decode_tiles(single) if single else None, chunks)

    def _decode_tiles(self, sequences: list[int]) -> DecodeTiles:
        device = self._offsets.device
        index = torch.tensor(sequences, device=device)
        lengths = self._metadata.seq_lens.long()[index]
        first = (lengths - self._window).clamp_min(0) // TILE
        num_tiles = (lengths - 1) // TILE - first + 1
        order = num_tiles.argsort(descending=True, stable=True)
        index, lengths, first, num_tiles = (x[order] for x in (index, lengths, first, num_tiles))
        most = int(num_tiles[0])
        counts = (num_tiles > torch.arange(most, device=device)[:, None]).sum(1).tolist()
        # Entry j of the batch is tile `nth` of the sequence that stands at `place` in the order.
        place = torch.cat([torch.arange(count, device=device) for count in counts])
        nth = torch.arange(most, device=device).repeat_interleave(torch.tensor(counts).to(device))
        positions = (first[place] + nth)[:, None] * TILE + self._offsets
        length = lengths[place, None]
        visible = (positions < length) & (positions >= length - self._window)
        rows = self._metadata.query_start_loc.long()[index]
        return DecodeTiles(
            rows=rows,
            tile_rows=rows[place],
            counts=counts,
            slots=self._slots(index[place, None], torch.where(visible, positions, length - 1)),
            bias=self._bias(visible)[:, None, None, :],
        )

    def _chunks(self, sequence: int, rows: range, length: int) -> Iterator[Chunk]:
        first_position = length - len(rows)
        for done in range(0, len(rows), MAX_CHUNK_ROWS):
            num_rows = min(MAX_CHUNK_ROWS, len(rows) - done)
            tiles = list(self._chunk_tiles(sequence, first_position + done, num_rows))
            yield Chunk(rows[done], num_rows, tiles)

    def _chunk_tiles(self, sequence: int, computed: int, num_rows: int) -> Iterator[ChunkTile]:
        """The tiles of the rows at positions [computed, computed + num_rows)."""
        length = computed + num_rows
        oldest = max(0, computed - self._window + 1)
        for start in range(oldest // TILE * TILE, length, TILE):
            first_row = max(0, start - computed)
            end_row = min(num_rows, start + TILE + self._window - 1 - computed)
            keys = start + self._offsets
            readable = (keys < length) & (keys >= oldest)
            first, last = computed + first_row, computed + end_row - 1
            bias = None
            if start + TILE - 1 > first or start <= last - self._window:
                queries = torch.arange(first, last + 1, device=keys.device)[:, None]
                bias = self._bias((keys <= queries) & (keys > queries - self._window))
            slots = self._slots(
                torch.tensor(sequence, device=keys.device), keys.where(readable, length - 1)
            )
            yield ChunkTile(first_row, end_row, slots, bias)

    def _slots(self, sequence: Tensor, positions: Tensor) -> Tensor:
        rows = self._metadata.table_rows[sequence]
        blocks = self._metadata.block_tables[rows, positions // self._block_size].long()
        return (blocks * self._block_size + positions % self._block_size).flatten()

    def _bias(self, visible: Tensor) -> Tensor:
        nothing = torch.zeros((), dtype=self._dtype, device=visible.device)
        return nothing.where(visible, float("-inf"))
