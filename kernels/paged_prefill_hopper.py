"""paged_prefill for Hopper GPUs (compute capability 9.0), in Gluon.

FlashAttention-3 (Shah et al. 2024) over pages. A program is three parts that run side by side: a
loading warp, which fetches pages through TMA into a ring of STAGES tiles of keys and values, and
two groups of four warps, each of which attends for 64 rows of a tile of 128. A group asks at once
for the products of one tile of keys and of the values of the tile before, and does its softmax
while the tensor cores compute the latter, or serve the other group.

The arithmetic is that of attention_tiles, to the bit.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from pagetwin.kernels import pages_hopper
from pagetwin.kernels.attention_tiles import SPLIT, log2_scale
from pagetwin.kernels.pages_hopper import SIDE, clear_values, pages_of
from pagetwin.kernels.wgmma_softmax import (
    TILE,
    fold_split,
    lane_layout,
    masked,
    packed,
    product_layout,
    register_order,
    softmax_step,
    total_sum,
    unpacked,
)

GROUP_ROWS = gl.constexpr(64)
_STAGES = 2
"""Tiles of keys and values in memory: as many as fit beside what has been folded."""
_SIDE: gl.constexpr = gl.constexpr(SIDE)


@gluon.jit
def _nth_item(nth):
    """Each program's items, back and forth over the list, so that long and short ones even out."""
    programs = gl.num_programs(0)
    program = gl.program_id(0)
    return nth * programs + gl.where(nth % 2 == 0, program, programs - 1 - program)


@gluon.jit
def _first_key(position, sliding_window, HAS_WINDOW: gl.constexpr):
    """The oldest key that a row at `position` sees."""
    if HAS_WINDOW:
        return gl.maximum(position - sliding_window + 1, 0)
    else:
        return position * 0


@gluon.jit
def _load(
    rings,
    q_desc,
    cache_desc,
    tiles_ptr,
    num_items,
    sliding_window,
    places,
    NUM_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    BOX: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
):
    """The loading warp: queries, then tile after tile of keys and values, box after box.

    A box (pages_hopper) without visible keys is asked for beyond the cache, which gives 0.
    """
    q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty = rings
    STAGES: gl.constexpr = k_smem.shape[0]
    HEAD: gl.constexpr = k_smem.shape[2]
    block_tables_ptr, table_stride, first_value_row, no_row = places
    HALVES: gl.constexpr = HEAD // 64
    BOXES: gl.constexpr = TILE // BOX
    TILE_BYTES: gl.constexpr = TILE * HEAD * 2
    box_shape: gl.constexpr = [STAGES * HALVES * BOXES, BOX, 64]
    k_boxes = k_smem._reinterpret(k_smem.dtype, box_shape, _SIDE)
    v_boxes = v_smem._reinterpret(v_smem.dtype, box_shape, _SIDE)
    items = 0
    tiles = 0
    for nth in range(gl.cdiv(num_items, gl.num_programs(0))):
        item = _nth_item(nth)
        record = tiles_ptr + item // NUM_HEADS * 4
        num_rows = gl.load(record + 3, mask=item < num_items, other=0)
        if num_rows > 0:
            row = gl.load(record)
            position = gl.load(record + 1)
            table_ptr = block_tables_ptr + gl.load(record + 2).to(gl.int64) * table_stride
            head = item % NUM_HEADS
            oldest = _first_key(position, sliding_window, HAS_WINDOW)
            end = position + num_rows

            mbarrier.wait(q_empty, (items & 1) ^ 1)
            mbarrier.expect(q_full, 2 * GROUP_ROWS * HEAD * 2)
            for i in gl.static_range(2):
                tma.async_copy_global_to_shared(
                    q_desc, [row + i * GROUP_ROWS, head * HEAD], q_full, q_smem.index(i)
                )
            items += 1

            column = head // GROUP * HEAD
            for tile in range(oldest // TILE, gl.cdiv(end, TILE)):
                rows = ()
                for i in gl.static_range(BOXES):
                    key = tile * TILE + i * BOX
                    wanted = (key < end) & (key + BOX > oldest)
                    block = gl.load(table_ptr + key // BLOCK_SIZE, mask=wanted, other=0)
                    cache_row = block * BLOCK_SIZE + key % BLOCK_SIZE
                    rows = rows + (gl.where(wanted, cache_row, no_row),)  # type: ignore[assignment] # noqa: RUF005
                stage = tiles % STAGES
                phase = (tiles // STAGES & 1) ^ 1
                mbarrier.wait(k_empty.index(stage), phase)
                mbarrier.expect(k_full.index(stage), TILE_BYTES)
                for half in gl.static_range(HALVES):
                    for i in gl.static_range(BOXES):
                        tma.async_copy_global_to_shared(
                            cache_desc,
                            [rows[i], column + half * 64],
                            k_full.index(stage),
                            k_boxes.index((stage * HALVES + half) * BOXES + i),
                        )
                mbarrier.wait(v_empty.index(stage), phase)
                mbarrier.expect(v_full.index(stage), TILE_BYTES)
                for half in gl.static_range(HALVES):
                    for i in gl.static_range(BOXES):
                        tma.async_copy_global_to_shared(
                            cache_desc,
                            [first_value_row + rows[i], column + half * 64],
                            v_full.index(stage),
                            v_boxes.index((stage * HALVES + half) * BOXES + i),
                        )
                tiles += 1


@gluon.jit
def _step(
    state,
    rings,
    folded_smem,
    tile,
    tiles,
    scores,
    MEMBER: gl.constexpr,
    SPLIT_TILES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    MASKED: gl.constexpr,
):
    """Begins the products of keys `tile`, ends with those of the values before; see _attend."""
    q_smem, k_smem, v_smem, _q_full, _q_empty, k_full, k_empty, v_full, v_empty = rings
    STAGES: gl.constexpr = k_smem.shape[0]
    HEAD: gl.constexpr = k_smem.shape[2]
    SCORES: gl.constexpr = product_layout(128)
    OUT: gl.constexpr = product_layout(HEAD)
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    OUT_ROW: gl.constexpr = gl.SliceLayout(1, OUT)
    position, scale, sliding_window = scores
    weights, maximum, sums, weighted, folded_maximum, folded_total, has_folded = state
    nothing = gl.zeros([64, 128], gl.float32, SCORES)
    stage = tiles % STAGES
    next_stage = (tiles + 1) % STAGES
    weights = unpacked(weights, v_smem.dtype, WEIGHTS)
    mbarrier.wait(k_full.index(next_stage), (tiles + 1) // STAGES & 1)
    products = warpgroup_mma(
        q_smem.index(MEMBER),
        k_smem.index(next_stage).permute((1, 0)),
        nothing,
        use_acc=False,
        is_async=True,
    )
    mbarrier.wait(v_full.index(stage), tiles // STAGES & 1)
    weighted = warpgroup_mma(weights, v_smem.index(stage), weighted, is_async=True)
    products = warpgroup_mma_wait(1, [products])
    mbarrier.arrive(k_empty.index(next_stage), count=1)
    is_new = tile % SPLIT_TILES == 0
    old_maximum = gl.where(is_new, float("-inf"), maximum)
    if MASKED:
        products = masked(products, tile, position, sliding_window, HAS_WINDOW)
    wide, rescale, new_maximum, new_sums = softmax_step(products, scale, old_maximum, sums)
    # Over already; but the assembler moves no softmax beyond its branch, to after the products.
    mbarrier.wait(v_full.index(stage), tiles // STAGES & 1)
    weighted = warpgroup_mma_wait(0, [weighted])
    mbarrier.arrive(v_empty.index(stage), count=1)
    weights = packed(wide, v_smem.dtype)
    if is_new:
        split_total = total_sum(sums, ROW)
        if has_folded:
            earlier = folded_smem.load(OUT)
            folded_maximum, folded_total, weighted = fold_split(
                folded_maximum, folded_total, earlier, maximum, split_total, weighted
            )
        else:
            folded_maximum = maximum
            folded_total = split_total
        folded_smem.store(weighted)
        has_folded = True
        weighted = gl.zeros([64, HEAD], gl.float32, OUT)
    else:
        across = gl.convert_layout(rescale, OUT_ROW, assert_trivial=True)
        weighted = weighted * across[:, None]
    return weights, new_maximum, new_sums, weighted, folded_maximum, folded_total, has_folded


@gluon.jit
def _attend(
    rings,
    folded_smem,
    work,
    MEMBER: gl.constexpr,
    NUM_HEADS: gl.constexpr,
    BOX: gl.constexpr,
    SPLIT: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_SINKS: gl.constexpr,
):
    """A group of four warps: rows [64 * MEMBER, 64 * (MEMBER + 1)) of each tile of rows."""
    q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty = rings
    tiles_ptr, out_ptr, sinks_ptr, num_items, scale, sliding_window, out_stride = work
    STAGES: gl.constexpr = k_smem.shape[0]
    HEAD: gl.constexpr = k_smem.shape[2]
    SCORES: gl.constexpr = product_layout(128)
    OUT: gl.constexpr = product_layout(HEAD)
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    OUT_ROW: gl.constexpr = gl.SliceLayout(1, OUT)
    SPLIT_TILES: gl.constexpr = SPLIT // TILE
    nothing = gl.zeros([64, 128], gl.float32, SCORES)
    items = 0
    tiles = 0
    for nth in range(gl.cdiv(num_items, gl.num_programs(0))):
        item = _nth_item(nth)
        record = tiles_ptr + item // NUM_HEADS * 4
        num_rows = gl.load(record + 3, mask=item < num_items, other=0)
        if num_rows > 0:
            first_position = gl.load(record + 1)
            oldest = _first_key(first_position, sliding_window, HAS_WINDOW)
            end = first_position + num_rows
            start = oldest // TILE
            stop = gl.cdiv(end, TILE)
            position = first_position + MEMBER * 64 + gl.arange(0, 64, ROW)

            # The first tile of keys.
            mbarrier.wait(q_full, items & 1)
            stage = tiles % STAGES
            mbarrier.wait(k_full.index(stage), tiles // STAGES & 1)
            products = warpgroup_mma(
                q_smem.index(MEMBER),
                k_smem.index(stage).permute((1, 0)),
                nothing,
                use_acc=False,
                is_async=True,
            )
            products = warpgroup_mma_wait(0, [products])
            mbarrier.arrive(k_empty.index(stage), count=1)
            maximum = gl.full([64], float("-inf"), gl.float32, ROW)
            sums = gl.zeros([64, 16], gl.float32, lane_layout())
            products = masked(products, start, position, sliding_window, HAS_WINDOW)
            weights, _, maximum, sums = softmax_step(products, scale, maximum, sums)
            weights = packed(weights, v_smem.dtype)
            weighted = gl.zeros([64, HEAD], gl.float32, OUT)
            folded_maximum = maximum
            folded_total = gl.zeros([64], gl.float32, ROW)
            has_folded = False
            if HAS_WINDOW:  # noqa: SIM102 (decided by the compiler)
                if oldest % BOX > 0:
                    mbarrier.wait(v_full.index(stage), tiles // STAGES & 1)
                    clear_values(v_smem, stage, oldest % TILE // BOX * BOX, oldest % TILE)

            scores = (position, scale, sliding_window)
            state = (weights, maximum, sums, weighted, folded_maximum, folded_total, has_folded)
            whole = gl.maximum((first_position + MEMBER * 64 + 1) // TILE, start + 1)
            whole = gl.minimum(whole, stop)
            masked_until = start + 1
            if HAS_WINDOW:
                newest = gl.minimum(first_position + MEMBER * 64 + 63, end - 1)
                masked_until = gl.cdiv(_first_key(newest, sliding_window, True), TILE)
                masked_until = gl.minimum(gl.maximum(masked_until, start + 1), stop)
                whole = gl.maximum(whole, masked_until)
            if HAS_WINDOW:
                for tile in range(start + 1, masked_until):
                    state = _step(
                        state,
                        rings,
                        folded_smem,
                        tile,
                        tiles,
                        scores,
                        MEMBER,
                        SPLIT_TILES,
                        HAS_WINDOW,
                        MASKED=True,
                    )
                    tiles += 1
            for tile in range(masked_until, whole):
                state = _step(
                    state,
                    rings,
                    folded_smem,
                    tile,
                    tiles,
                    scores,
                    MEMBER,
                    SPLIT_TILES,
                    HAS_WINDOW,
                    MASKED=False,
                )
                tiles += 1
            for tile in range(whole, stop):
                state = _step(
                    state,
                    rings,
                    folded_smem,
                    tile,
                    tiles,
                    scores,
                    MEMBER,
                    SPLIT_TILES,
                    HAS_WINDOW,
                    MASKED=True,
                )
                tiles += 1
            weights, maximum, sums, weighted, folded_maximum, folded_total, has_folded = state
            stage = tiles % STAGES

            # The last tile of values.
            mbarrier.arrive(q_empty, count=1)
            mbarrier.wait(v_full.index(stage), tiles // STAGES & 1)
            if end % BOX > 0:
                last = end % TILE
                clear_values(v_smem, stage, last, gl.cdiv(last, BOX) * BOX)
            weighted = warpgroup_mma(
                unpacked(weights, v_smem.dtype, WEIGHTS),
                v_smem.index(stage),
                weighted,
                is_async=True,
            )
            weighted = warpgroup_mma_wait(0, [weighted])
            mbarrier.arrive(v_empty.index(stage), count=1)
            tiles += 1
            items += 1

            total = total_sum(sums, ROW)
            if has_folded:
                earlier = folded_smem.load(OUT)
                maximum, total, weighted = fold_split(
                    folded_maximum, folded_total, earlier, maximum, total, weighted
                )
            head = item % NUM_HEADS
            if HAS_SINKS:
                sink = gl.load(sinks_ptr + head).to(gl.float32) * 1.4426950408889634
                sink = gl.full([64], sink, gl.float32, ROW)
                maximum, total, weighted = fold_split(
                    maximum, total, weighted, sink, 1.0, gl.zeros_like(weighted)
                )
            total = gl.where(total == 0.0, 1.0, total)
            result = weighted / gl.convert_layout(total, OUT_ROW, assert_trivial=True)[:, None]
            STORED: gl.constexpr = gl.BlockedLayout(
                [1, 8], [256 // HEAD, HEAD // 8], [4, 1], [1, 0]
            )
            # By way of shared memory, which holds nothing now, so that rows are stored whole.
            result_smem = folded_smem._reinterpret(v_smem.dtype, [2, 64, HEAD], _SIDE)
            result_smem = result_smem.index(0)
            result_smem.store(result.to(v_smem.dtype))
            member = MEMBER * 64 + gl.arange(0, 64, gl.SliceLayout(1, STORED))
            column = gl.arange(0, HEAD, gl.SliceLayout(0, STORED))
            out_row_ptr = out_ptr + (gl.load(record).to(gl.int64) * out_stride + head * HEAD)
            gl.store(
                out_row_ptr + (member[:, None] * out_stride + column[None, :]),
                result_smem.load(STORED),
                mask=(member < num_rows)[:, None] & (column >= 0)[None, :],
            )


@gluon.jit(do_not_specialize=["num_items", "sliding_window"])
def paged_prefill_hopper_kernel(
    q_desc,
    cache_desc,
    block_tables_ptr,
    tiles_ptr,
    out_ptr,
    sinks_ptr,
    num_items,
    scale,
    sliding_window,
    out_stride,
    table_stride,
    first_value_row,
    no_row,
    NUM_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    BOX: gl.constexpr,
    SPLIT: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_SINKS: gl.constexpr,
):
    """Each program does every num_programs-th item: a tile of 128 rows, one query head."""
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_smem = gl.allocate_shared_memory(q_desc.dtype, [2, GROUP_ROWS, HEAD], _SIDE)
    k_smem = gl.allocate_shared_memory(q_desc.dtype, [STAGES, TILE, HEAD], _SIDE)
    v_smem = gl.allocate_shared_memory(q_desc.dtype, [STAGES, TILE, HEAD], _SIDE)
    folded0 = gl.allocate_shared_memory(gl.float32, [GROUP_ROWS, HEAD], register_order(HEAD))
    folded1 = gl.allocate_shared_memory(gl.float32, [GROUP_ROWS, HEAD], register_order(HEAD))
    q_full = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    q_empty = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    rings = (q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty)
    work = (tiles_ptr, out_ptr, sinks_ptr, num_items, scale, sliding_window, out_stride)
    places = (block_tables_ptr, table_stride, first_value_row, no_row)
    gl.warp_specialize(
        [
            (
                _attend,
                (
                    rings,
                    folded0,
                    work,
                    0,
                    NUM_HEADS,
                    BOX,
                    SPLIT,
                    HAS_WINDOW,
                    HAS_SINKS,
                ),
            ),
            (
                _attend,
                (
                    rings,
                    folded1,
                    work,
                    1,
                    NUM_HEADS,
                    BOX,
                    SPLIT,
                    HAS_WINDOW,
                    HAS_SINKS,
                ),
            ),
            (
                _load,
                (
                    rings,
                    q_desc,
                    cache_desc,
                    tiles_ptr,
                    num_items,
                    sliding_window,
                    places,
                    NUM_HEADS,
                    GROUP,
                    BLOCK_SIZE,
                    BOX,
                    HAS_WINDOW,
                ),
            ),
        ],
        [4, 1],
        [232, 40],
    )


def refusal(q: Tensor, out: Tensor, kv_cache: Tensor) -> str | None:
    """Why these tensors cannot go to the kernel; None if they can."""
    if reason := pages_hopper.refusal(kv_cache):
        return reason
    if any(x.data_ptr() % 16 or x.stride(0) * 2 % 16 for x in (q, out)):
        return "q or out is not aligned to 16 bytes"
    return None


def launch_hopper(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    tiles: Tensor,
    scale: float,
    sliding_window: int,
    sinks: Tensor | None,
    num_programs: int,
) -> None:
    """As paged_prefill, for tensors that refusal() lets pass."""
    num_rows, num_heads, head_size = q.shape
    block_size, num_kv_heads = kv_cache.shape[2:4]
    pages = pages_of(kv_cache)
    q_desc = TensorDescriptor(
        q, [num_rows, num_heads * head_size], [q.stride(0), 1], [64, head_size], SIDE
    )
    num_items = len(tiles) * num_heads
    paged_prefill_hopper_kernel[(min(num_items, num_programs),)](
        q_desc,
        pages.descriptor,
        block_tables,
        tiles,
        out,
        out if sinks is None else sinks,
        num_items,
        log2_scale(scale),
        sliding_window,
        out.stride(0),
        block_tables.stride(0),
        pages.first_value_row,
        pages.no_row,
        NUM_HEADS=num_heads,
        GROUP=num_heads // num_kv_heads,
        HEAD=head_size,
        BLOCK_SIZE=block_size,
        BOX=pages.box,
        SPLIT=SPLIT,
        STAGES=_STAGES,
        HAS_WINDOW=sliding_window != 0,
        HAS_SINKS=sinks is not None,
        num_warps=4,
    )
