"""paged_decode for Hopper GPUs (compute capability 9.0), in Gluon.

To decode is to read, so the memory must never wait for anything else. A program, of which each
processor has one, is four parts that run side by side. A warp draws items ahead, looks up where
their blocks lie and fetches their queries: the queue. Another fetches the blocks through TMA into
a ring of tiles of keys and values, on and on over the ends of items. Two groups of four warps
attend, each for every other item: while one ends its item (sums, partial results, the fold of
splits), the other is in the next.

The arithmetic is that of attention_tiles, to the bit.
"""

from typing import Any

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from pagetwin.kernels import pages_hopper
from pagetwin.kernels.attention_tiles import SPLIT, log2_scale
from pagetwin.kernels.decode_attend_hopper import attend_items
from pagetwin.kernels.decode_queue_hopper import (
    END,
    KV_HEAD,
    ROWS,
    WORD_LAYOUT,
    WORDS,
    queue_items,
    read_word,
    split_start,
)
from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.pages_hopper import SIDE, pages_of
from pagetwin.kernels.pdl import start_next, wait_for_previous
from pagetwin.kernels.wgmma_softmax import TILE

STAGES = 3
"""Tiles of keys and values in memory: as many as fit."""
ENTRIES = 3
"""Items in the queue: one for each part that reads it."""
_SIDE: gl.constexpr = gl.constexpr(SIDE)


@gluon.jit
def _fetch_tile(cache_desc, rows, column, full, boxes, stage):
    """Asks for a tile of keys or values, box after box."""
    BOX: gl.constexpr = boxes.shape[1]
    BOXES: gl.constexpr = TILE // BOX
    HALVES: gl.constexpr = len(column)
    mbarrier.expect(full, TILE * HALVES * 64 * 2)
    for i in gl.static_range(BOXES):
        for half in gl.static_range(HALVES):
            place = boxes.index((stage * HALVES + half) * BOXES + i)
            tma.async_copy_global_to_shared(cache_desc, [rows[i], column[half]], full, place)


@gluon.jit
def _fetch_items(
    queue,
    ring,
    cache_desc,
    first_value_row,
    BOX: gl.constexpr,
    SPLIT: gl.constexpr,
    PDL: gl.constexpr,
):
    """The second warp: the queue's tiles of keys and values into the ring."""
    q_smem, words_smem, rows_smem, entry_full, entry_empty, begun = queue
    k_smem, v_smem, k_full, k_empty, v_full, v_empty = ring
    ENTRIES: gl.constexpr = q_smem.shape[0]
    STAGES: gl.constexpr = k_smem.shape[0]
    HEAD: gl.constexpr = k_smem.shape[2]
    HALVES: gl.constexpr = HEAD // 64
    BOXES: gl.constexpr = TILE // BOX
    box_shape: gl.constexpr = [STAGES * HALVES * BOXES, BOX, 64]
    k_boxes = k_smem._reinterpret(k_smem.dtype, box_shape, _SIDE)
    v_boxes = v_smem._reinterpret(v_smem.dtype, box_shape, _SIDE)
    items = 0
    tiles = 0
    mbarrier.wait(entry_full.index(0), 0)
    end = read_word(words_smem, END)
    wait_for_previous(PDL)
    while end >= 0:
        entry = items % ENTRIES
        first_column = read_word(words_smem, entry * WORDS + KV_HEAD) * HEAD
        column = ()
        for half in gl.static_range(HALVES):
            column = column + (first_column + half * 64,)  # type: ignore[assignment] # noqa: RUF005
        first_row = entry * (SPLIT // BOX)
        num_tiles = gl.cdiv(end - split_start(end, SPLIT), TILE)
        for tile in range(num_tiles):
            k_rows = ()
            v_rows = ()
            for i in gl.static_range(BOXES):
                row = read_word(rows_smem, first_row + i)
                k_rows = k_rows + (row,)  # type: ignore[assignment] # noqa: RUF005
                v_rows = v_rows + (first_value_row + row,)  # type: ignore[assignment] # noqa: RUF005
            first_row += BOXES
            stage = tiles % STAGES
            phase = (tiles // STAGES & 1) ^ 1
            mbarrier.wait(k_empty.index(stage), phase)
            _fetch_tile(cache_desc, k_rows, column, k_full.index(stage), k_boxes, stage)
            mbarrier.arrive(begun.index(entry), count=1, pred=tile == 0)
            mbarrier.wait(v_empty.index(stage), phase)
            _fetch_tile(cache_desc, v_rows, column, v_full.index(stage), v_boxes, stage)
            tiles += 1
        mbarrier.arrive(begun.index(entry), count=1, pred=num_tiles == 0)
        mbarrier.arrive(entry_empty.index(entry), count=1)
        items += 1
        entry = items % ENTRIES
        mbarrier.wait(entry_full.index(entry), items // ENTRIES & 1)
        end = read_word(words_smem, entry * WORDS + END)


@gluon.jit
def paged_decode_hopper_kernel(
    q_ptr,
    cache_desc,
    tables_ptr,
    items_ptr,
    members_ptr,
    num_items_ptr,
    out_ptr,
    weighted_ptr,
    stats_ptr,
    arrivals_ptr,
    scale,
    q_stride_row,
    q_stride_head,
    table_stride,
    first_value_row,
    no_row,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    BOX: gl.constexpr,
    SPLIT: gl.constexpr,
    STAGES: gl.constexpr,
    ENTRIES: gl.constexpr,
    PDL: gl.constexpr,
):
    """Each program computes items, each for one KV head, until there are no more."""
    start_next(PDL)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    dtype: gl.constexpr = cache_desc.dtype
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD], _SIDE)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD], _SIDE)
    q_smem = gl.allocate_shared_memory(dtype, [ENTRIES, ROWS, HEAD], _SIDE)
    words_smem = gl.allocate_shared_memory(gl.int32, [ENTRIES * WORDS, 1], WORD_LAYOUT)
    rows_smem = gl.allocate_shared_memory(gl.int32, [ENTRIES * (SPLIT // BOX), 1], WORD_LAYOUT)
    entry_full = gl.allocate_shared_memory(gl.int64, [ENTRIES, 1], BARRIER)
    entry_empty = gl.allocate_shared_memory(gl.int64, [ENTRIES, 1], BARRIER)
    begun = gl.allocate_shared_memory(gl.int64, [ENTRIES, 1], BARRIER)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for i in gl.static_range(ENTRIES):
        mbarrier.init(entry_full.index(i), count=1)
        # The loading warp and a group have read it; queries are there and the first tile begun.
        mbarrier.init(entry_empty.index(i), count=2)
        mbarrier.init(begun.index(i), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=1)
    queue = (q_smem, words_smem, rows_smem, entry_full, entry_empty, begun)
    ring = (k_smem, v_smem, k_full, k_empty, v_full, v_empty)
    work = (tables_ptr, items_ptr, members_ptr, num_items_ptr, arrivals_ptr)
    results = (out_ptr, weighted_ptr, stats_ptr, arrivals_ptr)
    gl.warp_specialize(
        [
            (
                attend_items,
                (queue, ring, results, members_ptr, scale, 0, NUM_KV_HEADS, GROUP, BOX, SPLIT),
            ),
            (
                attend_items,
                (queue, ring, results, members_ptr, scale, 1, NUM_KV_HEADS, GROUP, BOX, SPLIT),
            ),
            (_fetch_items, (queue, ring, cache_desc, first_value_row, BOX, SPLIT, PDL)),
            (
                queue_items,
                (
                    queue,
                    work,
                    q_ptr,
                    q_stride_row,
                    q_stride_head,
                    no_row,
                    table_stride,
                    NUM_KV_HEADS,
                    GROUP,
                    BLOCK_SIZE,
                    BOX,
                    SPLIT,
                    PDL,
                ),
            ),
        ],
        [4, 1, 1],
        [216, 72, 72],
    )


_launch = Launcher(paged_decode_hopper_kernel)


def refusal(q: Tensor, kv_cache: Tensor) -> str | None:
    """Why these tensors cannot go to the kernel; None if they can."""
    group = q.shape[1] // kv_cache.shape[3]
    if group > ROWS.value:
        return f"it takes at most {ROWS.value} query heads per KV head, not {group}"
    return pages_hopper.refusal(kv_cache)


def launch_hopper(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    work: Any,
    scratch: Any,
    scale: float,
    most_programs: int,
) -> None:
    """As paged_decode, for tensors that refusal() lets pass; `most_programs` one per processor."""
    num_heads, head_size = q.shape[1:]
    block_size, num_kv_heads = kv_cache.shape[2:4]
    pages = pages_of(kv_cache)
    num_programs = min(len(work.items) * num_kv_heads, most_programs)
    _launch(
        (num_programs, 1, 1),
        (
            q,
            pages.descriptor,
            block_tables,
            work.items,
            work.members,
            work.num_items,
            out,
            scratch.weighted,
            scratch.stats,
            scratch.arrivals,
            log2_scale(scale),
            q.stride(0),
            q.stride(1),
            block_tables.stride(0),
            pages.first_value_row,
            pages.no_row,
        ),
        (
            num_kv_heads,
            num_heads // num_kv_heads,
            head_size,
            block_size,
            pages.box,
            SPLIT,
            STAGES,
            ENTRIES,
        ),
    )
