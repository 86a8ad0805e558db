"""Attention by torch operations alone: the CPU's backend, and everyone's reference in the engine.

Rows that are alone in their sequence (decode) are computed together, as one batch of tiles; a
chunk of several rows tile by tile. Each tile gives an output and a log-sum-exp, which are merged
in ascending order (flash decoding; Dao et al. 2023).

Bits, in float32: a decode row's result depends on its own sequence alone, not on the batch, nor
on where its blocks are: every tile is the same computation, cut at absolute positions (tiles.py).
Where the BLAS rounds a row of a product alike whatever rows stand beside it, prefill, chunks and
decode give the same bits too. MKL does so with AVX-512, but for a handful of rows, hence the
padding to groups; with AVX2 it does not. In bfloat16 and float16 all this holds with AVX-512, but
not on a processor with AMX. All were measured; tests/engine/attention/test_bits.py.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata
from pagetwin.engine.attention.tiles import TILE, Chunk, DecodeTiles, StepTiles, TilePlanner

_MAX_BATCH_TILES = 32
"""Tiles of a decode batch that are gathered and computed at once."""


@dataclass
class _CurrentStep:
    """What is derived from the metadata of the step at hand, for all of its layers."""

    metadata: AttentionMetadata
    tiles: dict[int, StepTiles] = field(default_factory=dict)
    """By sliding window."""


@dataclass(frozen=True)
class _Inputs:
    """One layer's queries [num_tokens, num_kv_heads, group, head_size] and its cache, by slot:
    keys and values [num_slots, num_kv_heads, head_size]."""

    q: Tensor
    keys: Tensor
    values: Tensor
    scale: float


class _Merged:
    """Softmax-weighted sums over a growing set of keys, in float32 or better.

    Adding nothing to a row is exact: its weight is exp(-inf) = 0, the old weight exp(0) = 1.
    """

    def __init__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        """`shape`: [..., head_size]."""
        self._sum = torch.zeros(shape, dtype=dtype, device=device)
        self._weight = torch.zeros(shape[:-1], dtype=dtype, device=device)
        self._max = torch.full_like(self._weight, -torch.inf)

    def add(self, index: tuple[slice, ...], out: Tensor, lse: Tensor) -> None:
        """Merge a tile's result into the rows that `index` selects."""
        old_max = self._max[index]
        new_max = torch.maximum(old_max, lse)
        old, new = torch.exp(old_max - new_max), torch.exp(lse - new_max)
        self._sum[index].mul_(old[..., None]).add_(out * new[..., None])
        self._weight[index].mul_(old).add_(new)
        self._max[index] = new_max

    def result(self) -> Tensor:
        return self._sum / self._weight[..., None]


class TorchBackend(AttentionBackend):
    """Any torch device, head size, block size, and floating-point dtype of 16 bits or more."""

    name = "torch"

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(spec)
        self._fused = spec.device_type == "cpu" and not spec.soft_cap
        self._row_group = 8 if spec.head_size <= 128 else 16
        self._gathered: Tensor | None = None
        self._step: _CurrentStep | None = None

    @classmethod
    def rejection(cls, spec: AttentionSpec) -> str | None:
        if not spec.dtype.is_floating_point or spec.dtype.itemsize < 2:
            return f"it computes in floating point of 16 bits or more, not in {spec.dtype}"
        if spec.needs_alibi:
            return "it has no ALiBi"
        if spec.needs_sinks:
            return "it has no attention sinks"
        return None

    def forward(
        self,
        q: Tensor,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        *,
        scale: float,
        sliding_window: int = 0,
    ) -> Tensor:
        inputs = self._inputs(q, kv_cache, scale)
        tiles = self._tiles(metadata, kv_cache.shape[2], sliding_window)
        out = q.new_zeros(inputs.q.shape)
        if tiles.decode is not None:
            out[tiles.decode.rows] = self._decode(inputs, tiles.decode).to(q.dtype)
        self._attend_chunks(out, inputs, tiles.chunks)
        return out.view(q.shape)

    def _inputs(self, q: Tensor, kv_cache: Tensor, scale: float) -> _Inputs:
        keys, values = (side.flatten(0, 1) for side in kv_cache.unbind(0))
        num_tokens, _, head_size = q.shape
        return _Inputs(q.view(num_tokens, keys.shape[1], -1, head_size), keys, values, scale)

    def _attend_chunks(self, out: Tensor, inputs: _Inputs, chunks: list[Chunk]) -> None:
        """Fill the chunks' rows of `out`, which has the shape of `inputs.q`."""
        for chunk in chunks:
            rows = slice(chunk.first_row, chunk.first_row + chunk.num_rows)
            out[rows] = self._chunk(inputs, chunk).to(out.dtype)

    def _tiles(
        self, metadata: AttentionMetadata, block_size: int, sliding_window: int
    ) -> StepTiles:
        if self._step is None or self._step.metadata is not metadata:
            self._step = _CurrentStep(metadata)
        tiles = self._step.tiles.get(sliding_window)
        if tiles is None:
            planner = TilePlanner(metadata, block_size, self.spec.dtype, sliding_window)
            tiles = self._step.tiles[sliding_window] = planner.plan()
        return tiles

    def _decode(self, inputs: _Inputs, tiles: DecodeTiles) -> Tensor:
        """[num_sequences, num_kv_heads, group, head_size], in the order of `tiles.rows`."""
        group = inputs.q.shape[2]
        q = self._pad_rows(inputs.q[tiles.tile_rows])
        parts = [
            self._attend(part, *self._gather(inputs, slots), bias, inputs.scale)
            for part, slots, bias in zip(
                torch.split(q, _MAX_BATCH_TILES),
                torch.split(tiles.slots, _MAX_BATCH_TILES * TILE),
                torch.split(tiles.bias, _MAX_BATCH_TILES),
                strict=True,
            )
        ]
        outs = torch.cat([out for out, _ in parts])[:, :, :group]
        lses = torch.cat([lse for _, lse in parts])[:, :, :group]
        if len(tiles.counts) == 1:
            return outs
        merged = _Merged(outs[: tiles.counts[0]].shape, lses.dtype, outs.device)
        by_order = torch.split(outs, tiles.counts), torch.split(lses, tiles.counts)
        for out, lse in zip(*by_order, strict=True):
            merged.add((slice(len(out)),), out, lse)
        return merged.result()

    def _gather(self, inputs: _Inputs, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [num_tiles, num_kv_heads, TILE, head_size], valid until the next call.

        They go to the same memory every time: fresh memory would cost more than the copy.
        """
        if self._gathered is None:
            shape = (2, _MAX_BATCH_TILES * TILE, *inputs.keys.shape[1:])
            with torch.inference_mode(False):  # so that it can be written in either mode
                self._gathered = inputs.keys.new_empty(shape)
        k, v = (
            torch.index_select(side, 0, slots, out=out[: len(slots)])
            .view(-1, TILE, *side.shape[1:])
            .transpose(1, 2)
            for side, out in zip((inputs.keys, inputs.values), self._gathered, strict=True)
        )
        return k, v

    def _chunk(self, inputs: _Inputs, chunk: Chunk) -> Tensor:
        """[num_rows, num_kv_heads, group, head_size]."""
        rows = inputs.q[chunk.first_row : chunk.first_row + chunk.num_rows].permute(1, 2, 0, 3)
        dtype = torch.promote_types(rows.dtype, torch.float32)
        merged = _Merged(rows.shape, dtype, rows.device)
        for tile in chunk.tiles:
            num_rows = tile.end_row - tile.first_row
            q = self._pad_rows(rows[:, :, tile.first_row : tile.end_row])
            # One copy of the keys serves the group: it is seen through a stride of 0.
            k, v = (
                side.transpose(0, 1).expand(-1, q.shape[1], -1, -1)
                for side in self._gather(inputs, tile.slots)
            )
            bias = None if tile.bias is None else self._pad_rows(tile.bias)[None, None]
            out, lse = self._attend(q, k, v, bias, inputs.scale)
            span = (slice(None), slice(None), slice(tile.first_row, tile.end_row))
            merged.add(span, out[:, :, :num_rows], lse[:, :, :num_rows])
        return merged.result().permute(2, 0, 1, 3)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Softmax attention [batch, heads, rows, head_size] and its natural log-sum-exp."""
        if self._fused:
            attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            out, lse = attend(q, k, v, 0.0, False, attn_mask=bias, scale=scale)
            return out, lse
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = q.to(wide) @ k.to(wide).mT * scale
        if self.spec.soft_cap:
            scores = torch.tanh(scores / self.spec.soft_cap) * self.spec.soft_cap
        if bias is not None:
            scores = scores + bias
        lse = scores.logsumexp(-1)
        return torch.exp(scores - lse[..., None]) @ v.to(wide), lse

    def _pad_rows(self, rows: Tensor) -> Tensor:
        """Whole groups of rows [..., num_rows, n]: see the module's word on bits."""
        missing = -rows.shape[-2] % self._row_group
        return functional.pad(rows, (0, 0, 0, missing)) if missing else rows
