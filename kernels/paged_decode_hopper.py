"""paged_decode for Hopper GPUs (compute capability 9.0), in Gluon.

To decode is to read, so the memory must never wait for anything else. A program, of which each
processor has one, is four parts that run side by side. A warp draws items ahead, looks up where
their blocks lie and fetches their queries: the queue. Another fetches the blocks through TMA into
a ring of tiles of keys and values, on and on over the ends of items. Two groups of four warps
attend, each for every other item: while one ends its item (sums, partial results, the fold of
splits), the other is in the next.

wgmma multiplies 64 rows, and an item has 16 at most: each warp of a group has the same ones, and
what the first one finds is stored. There is time for that: the products of a tile take half as long
as its read.

The arithmetic is that of attention_tiles, to the bit.
"""

from typing import Any

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from pagetwin.kernels import pages_hopper
from pagetwin.kernels.attention_tiles import SPLIT, log2_scale
from pagetwin.kernels.decode_queue_hopper import (
    ANY_SLOT,
    END,
    FIRST_MEMBER,
    FIRST_TILE,
    GROUPS,
    KV_HEAD,
    NUM_MEMBERS,
    ROWS,
    WORD_LAYOUT,
    WORDS,
    queue_items,
    read_word,
    split_start,
)
from pagetwin.kernels.decode_splits_hopper import arrive, store_result
from pagetwin.kernels.pages_hopper import SIDE, clear_values, pages_of
from pagetwin.kernels.pdl import pdl_options, start_next, wait_for_previous
from pagetwin.kernels.wgmma_softmax import (
    TILE,
    lane_layout,
    masked,
    product_layout,
    softmax_step,
    total_sum,
)

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


@gluon.constexpr_function
def _copied_rows(columns):
    """[4, ROWS, columns]: the left operand of a product, each of four warps with all rows."""
    bases = [[0, 0, 1], [0, 8, 0], [0, 0, 8]]
    while 8 * 2 ** (len(bases) - 2) < columns:
        bases.append([0, 0, 8 * 2 ** (len(bases) - 2)])
    return gl.DistributedLinearLayout(
        reg_bases=bases,
        lane_bases=[[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        warp_bases=[[1, 0, 0], [2, 0, 0]],
        block_bases=[],
        shape=[4, 16, columns],
    )


@gluon.jit
def _copied(rows_smem):
    """[ROWS, n] in shared memory to [64, n] in registers."""
    COLUMNS: gl.constexpr = rows_smem.shape[1]
    COPIED: gl.constexpr = _copied_rows(COLUMNS)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, product_layout(128), 2)
    rows = gl.expand_dims(rows_smem.load(gl.SliceLayout(0, COPIED)), 0)
    rows, _ = gl.broadcast(rows, gl.zeros([4, ROWS, COLUMNS], rows.dtype, COPIED))
    return gl.convert_layout(gl.reshape(rows, [64, COLUMNS]), LEFT, assert_trivial=True)


@gluon.jit
def _attend_split(q_smem, ring, end, tiles, scale, BOX: gl.constexpr, SPLIT: gl.constexpr):
    """Maximum, total and weighted sum of an item's rows, of which `tiles` is the first tile.

    A barrier tells that its latest phase is over, not which that was. A group may be more than one
    phase ahead, since tiles between belong to the other group: so it waits for its place to be
    empty before it waits for it to be full. (For its first tile, that the loading warp has begun.)
    """
    k_smem, v_smem, k_full, k_empty, v_full, v_empty = ring
    STAGES: gl.constexpr = k_smem.shape[0]
    HEAD: gl.constexpr = k_smem.shape[2]
    SCORES: gl.constexpr = product_layout(128)
    OUT: gl.constexpr = product_layout(HEAD)
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    OUT_ROW: gl.constexpr = gl.SliceLayout(1, OUT)
    nothing = gl.zeros([64, 128], gl.float32, SCORES)
    position = gl.full([64], 0, gl.int32, ROW) + (end - 1)
    maximum = gl.full([64], float("-inf"), gl.float32, ROW)
    sums = gl.zeros([64, 16], gl.float32, lane_layout())
    weighted = gl.zeros([64, HEAD], gl.float32, OUT)
    for tile in range(split_start(end, SPLIT) // TILE, gl.cdiv(end, TILE)):
        stage = tiles % STAGES
        phase = tiles // STAGES & 1
        k = k_smem.index(stage).permute((1, 0))
        mbarrier.wait(k_empty.index(stage), phase ^ 1)
        mbarrier.wait(k_full.index(stage), phase)
        # Loaded for each tile anew: ptxas 12.8 overwrites queries that stay in registers.
        products = warpgroup_mma(_copied(q_smem), k, nothing, use_acc=False, is_async=True)
        products = warpgroup_mma_wait(0, [products])
        mbarrier.arrive(k_empty.index(stage), count=1)
        if tile * TILE + TILE > end:
            products = masked(products, tile, position, 0, False)
        weights, rescale, maximum, sums = softmax_step(products, scale, maximum, sums)
        weighted *= gl.convert_layout(rescale, OUT_ROW, assert_trivial=True)[:, None]
        weights = gl.convert_layout(weights.to(v_smem.dtype), WEIGHTS, assert_trivial=True)
        mbarrier.wait(v_empty.index(stage), phase ^ 1)
        mbarrier.wait(v_full.index(stage), phase)
        if (tile * TILE + TILE > end) & (end % BOX > 0):
            last = end % TILE
            clear_values(v_smem, stage, last, gl.cdiv(last, BOX) * BOX)
        weighted = warpgroup_mma(weights, v_smem.index(stage), weighted, is_async=True)
        weighted = warpgroup_mma_wait(0, [weighted])
        mbarrier.arrive(v_empty.index(stage), count=1)
        tiles += 1
    total = gl.convert_layout(total_sum(sums, ROW), OUT_ROW, assert_trivial=True)
    return gl.convert_layout(maximum, OUT_ROW, assert_trivial=True), total, weighted


@gluon.jit
def _attend_items(
    queue,
    ring,
    results,
    members_ptr,
    scale,
    NTH: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    BOX: gl.constexpr,
    SPLIT: gl.constexpr,
):
    """A group of four warps: items NTH, NTH + GROUPS and so on of the queue."""
    q_smem, words_smem, _, entry_full, entry_empty, begun = queue
    ENTRIES: gl.constexpr = q_smem.shape[0]
    HEAD: gl.constexpr = q_smem.shape[2]
    row = gl.arange(0, 64, gl.SliceLayout(1, product_layout(HEAD)))
    items = gl.to_tensor(NTH)
    mbarrier.wait(entry_full.index(NTH), 0)
    end = read_word(words_smem, NTH * WORDS + END)
    while end >= 0:
        entry = items % ENTRIES
        words = entry * WORDS
        first_member = members_ptr + read_word(words_smem, words + FIRST_MEMBER) * 4
        num_members = read_word(words_smem, words + NUM_MEMBERS)
        kv_head = read_word(words_smem, words + KV_HEAD)
        tiles = read_word(words_smem, words + FIRST_TILE)
        is_part = read_word(words_smem, words + ANY_SLOT) >= 0
        is_row = row < num_members * GROUP
        member = first_member + row // GROUP * 4
        query = gl.load(member, mask=is_row, other=0).to(gl.int64)
        slot = gl.load(member + 2, mask=is_row, other=-1)
        row_of = (is_row, query, kv_head * GROUP + row % GROUP, slot)

        mbarrier.wait(begun.index(entry), items // ENTRIES & 1)
        state = _attend_split(q_smem.index(entry), ring, end, tiles, scale, BOX, SPLIT)
        mbarrier.arrive(entry_empty.index(entry), count=1)
        split = split_start(end, SPLIT) // SPLIT
        store_result(state, row_of, results, split, is_part, NUM_KV_HEADS, GROUP)
        if is_part:
            arrive(first_member, num_members, results, kv_head, NUM_KV_HEADS, GROUP, HEAD)
        items += GROUPS
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
                _attend_items,
                (queue, ring, results, members_ptr, scale, 0, NUM_KV_HEADS, GROUP, BOX, SPLIT),
            ),
            (
                _attend_items,
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
    paged_decode_hopper_kernel[(num_programs,)](
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
        NUM_KV_HEADS=num_kv_heads,
        GROUP=num_heads // num_kv_heads,
        HEAD=head_size,
        BLOCK_SIZE=block_size,
        BOX=pages.box,
        SPLIT=SPLIT,
        STAGES=STAGES,
        ENTRIES=ENTRIES,
        num_warps=4,
        **pdl_options(q),
    )
