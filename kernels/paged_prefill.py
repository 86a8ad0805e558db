"""Attention of many query rows of a sequence over the paged KV cache (reference.dense_attention).

FlashAttention-2 (Dao 2023) over pages, in Triton for any GPU; paged_prefill_hopper has the fast
one. Whole prompts, chunks of prompts and batches of them are one thing here: a list of tiles, each
BLOCK_M consecutive rows of one sequence, made on the host (engine.attention.prefill_plan). One
program computes one tile of one query head.

A row's result is that of the decode kernel to the bit: see attention_tiles.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagetwin.kernels.attention_tiles import (
    SPLIT,
    fold_split,
    log2_scale,
    normalised,
    soft_capped,
    softmax_step,
    sum_lanes,
    tile_size,
    total_sum,
    with_alibi,
)
from pagetwin.kernels.hopper import gluon_kernels

BLOCK_M = 128
"""Rows of a tile of the work list."""


@dataclass(frozen=True)
class PrefillWork:
    """The tiles of one step, on the device."""

    tiles: Tensor
    """int32 [num_tiles, 4], long ones first: the tile's first row in q and that row's position in
    the sequence, the sequence's row in block_tables, and how many rows the tile has (at most
    BLOCK_M; 0 is padding)."""
    max_seq_len: int
    """At least the position of any tile's last row, plus 1; larger for a graph to be replayed."""


@triton.jit
def _attend_tile(
    state,
    q,
    tile,
    position,
    oldest,
    end,
    k_ptr,
    v_ptr,
    table_ptr,
    slopes,
    scale,
    soft_cap,
    sliding_window,
    stride_block,
    stride_token,
    HEAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds one tile of keys to a split's state. Of a masked tile, keys [oldest, end) are loaded."""
    maximum, sums, weighted = state
    M: tl.constexpr = q.shape[0]
    column = tl.arange(0, q.shape[1])
    key = tile * TILE + tl.arange(0, TILE)
    is_column = column < HEAD
    if MASKED:
        is_key = key < end
        if HAS_WINDOW:
            is_key = is_key & (key >= oldest)
        block = tl.load(table_ptr + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
    else:
        block = tl.load(table_ptr + key // BLOCK_SIZE).to(tl.int64)
    slot = block * stride_block + key % BLOCK_SIZE * stride_token
    # What is not visible is not loaded, so that NaN in it meets no weight of 0.
    if MASKED:
        readable = is_key[:, None] & is_column[None, :]
        k = tl.load(k_ptr + slot[:, None] + column[None, :], mask=readable, other=0.0)
        v = tl.load(v_ptr + slot[:, None] + column[None, :], mask=readable, other=0.0)
    elif q.shape[1] > HEAD:
        k = tl.load(k_ptr + slot[:, None] + column[None, :], mask=is_column[None, :], other=0.0)
        v = tl.load(v_ptr + slot[:, None] + column[None, :], mask=is_column[None, :], other=0.0)
    else:
        k = tl.load(k_ptr + slot[:, None] + column[None, :])
        v = tl.load(v_ptr + slot[:, None] + column[None, :])

    products = tl.dot(q, tl.trans(k), input_precision="ieee")
    if HAS_SOFT_CAP:
        products = soft_capped(products, scale, soft_cap)
    if HAS_SLOPES:
        distance = key[None, :] - position[:, None]
        products = with_alibi(products, 1.0 if HAS_SOFT_CAP else scale, slopes, distance)
    if MASKED:
        # Columns in eighths: a thread's columns are then constants, not registers of a loop.
        column8 = tl.arange(0, TILE // 8)[None, :, None] * 8
        last8 = (position - tile * TILE)[:, None, None] - tl.arange(0, 8)[None, None, :]
        visible = column8 <= last8
        if HAS_WINDOW:
            visible = visible & (column8 > last8 - sliding_window)
        products = tl.where(visible, tl.reshape(products, [M, TILE // 8, 8]), float("-inf"))
        products = tl.reshape(products, [M, TILE])
    step_scale = 1.0 if HAS_SOFT_CAP or HAS_SLOPES else scale
    weights, rescale, maximum, sums = softmax_step(products, step_scale, maximum, sums, M, TILE)
    weighted = weighted * rescale[:, None]
    weighted = tl.dot(weights.to(v.dtype), v, weighted, input_precision="ieee")
    return maximum, sums, weighted


@triton.jit(do_not_specialize=["num_items", "sliding_window"])
def paged_prefill_kernel(
    q_ptr,
    cache_ptr,
    block_tables_ptr,
    tiles_ptr,
    out_ptr,
    folded_ptr,
    slopes_ptr,
    sinks_ptr,
    num_items,
    scale,
    soft_cap,
    sliding_window,
    q_stride,
    out_stride,
    cache_stride_side,
    cache_stride_block,
    cache_stride_token,
    cache_stride_head,
    table_stride,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """Each program does every num_programs-th item: M rows of a tile of ROWS, one query head.

    Heads of a KV head come one after the other, so that they find its keys in the L2 cache. What
    splits have been folded waits in folded_ptr [num_programs, M, HEAD_PADDED], since registers
    cannot hold it besides the current split. IS_WHOLE: no row has more than one split.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    PARTS: tl.constexpr = ROWS // M
    SPLIT_TILES: tl.constexpr = SPLIT // TILE
    member = tl.arange(0, M)
    column = tl.arange(0, HEAD_PADDED)
    folded_ptr += tl.program_id(0) * (M * HEAD_PADDED)
    folded_ptr = folded_ptr + (member[:, None] * HEAD_PADDED + column[None, :])
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        head = item % NUM_HEADS
        part = item // NUM_HEADS % PARTS * M
        record = tiles_ptr + item // NUM_HEADS // PARTS * 4
        num_rows = tl.load(record + 3) - part
        if num_rows > 0:
            first_position = tl.load(record + 1) + part
            table_ptr = block_tables_ptr + tl.load(record + 2).to(tl.int64) * table_stride
            first_row = (tl.load(record) + part).to(tl.int64)
            in_out = (member < num_rows)[:, None] & (column < HEAD)[None, :]
            q_offsets = member[:, None] * q_stride + column[None, :]
            q_row_ptr = q_ptr + (first_row * q_stride + head * HEAD)
            q = tl.load(q_row_ptr + q_offsets, mask=in_out, other=0.0)
            k_ptr = cache_ptr + head // GROUP * cache_stride_head
            v_ptr = k_ptr + cache_stride_side
            slopes = member
            if HAS_SLOPES:
                slopes = tl.full([M], tl.load(slopes_ptr + head) * LOG2E, tl.float32)

            position = first_position + member
            end = first_position + tl.minimum(num_rows, M)
            num_tiles = tl.cdiv(end, TILE)
            num_whole = (first_position + 1) // TILE
            oldest = 0
            if HAS_WINDOW:
                oldest = tl.maximum(first_position - sliding_window + 1, 0)
                num_whole = 0
            first_tile = oldest // TILE
            first_split = first_tile // SPLIT_TILES
            num_splits = 1 if IS_WHOLE else tl.cdiv(num_tiles, SPLIT_TILES)

            maximum = tl.full([M], float("-inf"), tl.float32)
            total = tl.zeros([M], tl.float32)
            weighted = tl.zeros([M, HEAD_PADDED], tl.float32)
            for split in range(first_split, num_splits):
                state = (
                    tl.full([M], float("-inf"), tl.float32),
                    tl.zeros([M, sum_lanes(TILE)], tl.float32),
                    tl.zeros([M, HEAD_PADDED], tl.float32),
                )
                start = tl.maximum(split * SPLIT_TILES, first_tile)
                stop = tl.minimum((split + 1) * SPLIT_TILES, num_tiles)
                middle = tl.minimum(tl.maximum(num_whole, start), stop)
                for tile in range(start, middle):
                    state = _attend_tile(
                        state,
                        q,
                        tile,
                        position,
                        oldest,
                        end,
                        k_ptr,
                        v_ptr,
                        table_ptr,
                        slopes,
                        scale,
                        soft_cap,
                        sliding_window,
                        cache_stride_block,
                        cache_stride_token,
                        HEAD=HEAD,
                        BLOCK_SIZE=BLOCK_SIZE,
                        TILE=TILE,
                        HAS_SOFT_CAP=HAS_SOFT_CAP,
                        HAS_SLOPES=HAS_SLOPES,
                        HAS_WINDOW=HAS_WINDOW,
                        MASKED=False,
                    )
                for tile in range(middle, stop):
                    state = _attend_tile(
                        state,
                        q,
                        tile,
                        position,
                        oldest,
                        end,
                        k_ptr,
                        v_ptr,
                        table_ptr,
                        slopes,
                        scale,
                        soft_cap,
                        sliding_window,
                        cache_stride_block,
                        cache_stride_token,
                        HEAD=HEAD,
                        BLOCK_SIZE=BLOCK_SIZE,
                        TILE=TILE,
                        HAS_SOFT_CAP=HAS_SOFT_CAP,
                        HAS_SLOPES=HAS_SLOPES,
                        HAS_WINDOW=HAS_WINDOW,
                        MASKED=True,
                    )
                split_total = total_sum(state[1], M, sum_lanes(TILE))
                if IS_WHOLE or split == first_split:
                    maximum, total, weighted = state[0], split_total, state[2]
                else:
                    weighted = tl.load(folded_ptr)
                    maximum, total, weighted = fold_split(
                        maximum, total, weighted, state[0], split_total, state[2]
                    )
                if split + 1 < num_splits:
                    tl.store(folded_ptr, weighted)
                    tl.debug_barrier()
            if HAS_SINKS:
                sink = tl.full([M], tl.load(sinks_ptr + head).to(tl.float32) * LOG2E, tl.float32)
                maximum, total, weighted = fold_split(maximum, total, weighted, sink, 1.0, 0.0)
            out_offsets = member[:, None] * out_stride + column[None, :]
            out_row_ptr = out_ptr + (first_row * out_stride + head * HEAD)
            result = normalised(weighted, total).to(out_ptr.dtype.element_ty)
            tl.store(out_row_ptr + out_offsets, result, mask=in_out)


class _Launch(NamedTuple):
    """How the kernel is compiled: rows of a program, warps, stages of its loads."""

    m: int
    num_warps: int
    num_stages: int


def launch_shape(capability: int, head_size: int, itemsize: int, *, plain: bool) -> _Launch:
    """The largest shape that keeps its values in registers (test_compiles.py).

    `plain`: the head size is a power of two, and no option is used.
    """
    if itemsize > 2:
        return _Launch(32, 4, 1)
    if capability < 90:
        return _Launch(32, 8, 1)
    if head_size > 128 or not plain:
        return _Launch(32, 8, 2)
    return _Launch(128 if head_size <= 64 else 64, 8, 2)


@functools.cache
def _device_facts(device: torch.device) -> tuple[int, int]:
    """Compute capability, and how many programs share the work if sums wait in memory."""
    if device.type != "cuda":
        return 90, 4
    properties = torch.cuda.get_device_properties(device)
    return properties.major * 10 + properties.minor, 2 * properties.multi_processor_count


def launch_portable(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    work: PrefillWork,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    """As paged_prefill, by this file's kernel."""
    num_heads, head_size = q.shape[1:]
    itemsize = kv_cache.itemsize
    capability, most_programs = _device_facts(q.device)
    is_whole = work.max_seq_len <= SPLIT
    head_padded = max(16, triton.next_power_of_2(head_size))
    plain = not (sliding_window or soft_cap) and alibi_slopes is None and head_padded == head_size
    m, num_warps, num_stages = launch_shape(capability, head_size, itemsize, plain=plain)
    num_items = len(work.tiles) * (BLOCK_M // m) * num_heads
    num_programs = num_items if is_whole else min(num_items, most_programs)
    folded = out
    if not is_whole:
        folded = torch.empty(num_programs, m, head_padded, dtype=torch.float32, device=q.device)
    paged_prefill_kernel[(num_programs,)](
        q,
        kv_cache,
        block_tables,
        work.tiles,
        out,
        folded,
        out if alibi_slopes is None else alibi_slopes,
        out if sinks is None else sinks,
        num_items,
        log2_scale(scale),
        soft_cap,
        sliding_window,
        q.stride(0),
        out.stride(0),
        *kv_cache.stride()[:4],
        block_tables.stride(0),
        NUM_HEADS=num_heads,
        GROUP=num_heads // kv_cache.shape[3],
        HEAD=head_size,
        HEAD_PADDED=head_padded,
        BLOCK_SIZE=kv_cache.shape[2],
        ROWS=BLOCK_M,
        M=m,
        TILE=tile_size(head_size, itemsize),
        SPLIT=SPLIT,
        HAS_SOFT_CAP=soft_cap != 0,
        HAS_SLOPES=alibi_slopes is not None,
        HAS_SINKS=sinks is not None,
        HAS_WINDOW=sliding_window != 0,
        IS_WHOLE=is_whole,
        num_warps=num_warps,
        num_stages=num_stages,
    )


def hopper_refusal(q: Tensor, out: Tensor, kv_cache: Tensor) -> str | None:
    """Why paged_prefill_hopper does not serve these tensors; None if it does."""
    if not q.is_cuda:
        return "it runs on CUDA devices only"
    hopper = gluon_kernels("paged_prefill_hopper")
    return hopper if isinstance(hopper, str) else hopper.refusal(q, out, kv_cache)


def paged_prefill(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    work: PrefillWork,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    """Write the attention of the rows in `work` to the same rows of `out`, and no others.

    q, out [num_tokens, num_heads, head_size], a token's heads together; kv_cache [2, num_blocks,
    block_size, num_kv_heads, head_size], which holds the rows' own keys and values already;
    block_tables int32 [num_rows, max_blocks]. A row at position p sees the positions
    (p - sliding_window, p], or all up to p if sliding_window is 0. float32 [num_heads]
    alibi_slopes: slope * (key - query) is added to scores; sinks: one more score that every row
    sees, without a value. Nothing waits for the device.
    """
    head_size = q.shape[2]
    if q.stride()[1:] != (head_size, 1) or out.stride()[1:] != (head_size, 1):
        raise ValueError(
            f"paged_prefill: q and out have strides {q.stride()} and {out.stride()}, but a token's "
            f"heads must lie together: the last two must be ({head_size}, 1)"
        )
    if kv_cache.stride(4) != 1:
        raise ValueError(
            f"paged_prefill: kv_cache has strides {kv_cache.stride()}, but a head must be "
            "contiguous: the last must be 1"
        )
    if not len(work.tiles):
        return
    if not (soft_cap or alibi_slopes is not None) and hopper_refusal(q, out, kv_cache) is None:
        hopper: Any = gluon_kernels("paged_prefill_hopper")
        num_programs = torch.cuda.get_device_properties(q.device).multi_processor_count
        hopper.launch_hopper(
            out, q, kv_cache, block_tables, work.tiles, scale, sliding_window, sinks, num_programs
        )
    else:
        launch_portable(
            out,
            q,
            kv_cache,
            block_tables,
            work,
            scale,
            sliding_window,
            soft_cap,
            alibi_slopes,
            sinks,
        )


@torch.library.custom_op("pagetwin::paged_prefill", mutates_args={"out"})
def paged_prefill_op(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    tiles: Tensor,
    max_seq_len: int,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    """paged_prefill for graphs of torch's: `tiles` and `max_seq_len` are those of PrefillWork."""
    work = PrefillWork(tiles, max_seq_len)
    paged_prefill(
        out, q, kv_cache, block_tables, work, scale, sliding_window, soft_cap, alibi_slopes, sinks
    )


@paged_prefill_op.register_fake
def _(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    tiles: Tensor,
    max_seq_len: int,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    return None
