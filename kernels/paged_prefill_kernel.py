"""The Triton kernel of paged_prefill, for any GPU: one tile of query rows after the other."""

import triton
import triton.language as tl

from pagetwin.kernels.attention_tiles import (
    fold_split,
    normalised,
    soft_capped,
    softmax_step,
    sum_lanes,
    total_sum,
    with_alibi,
)


@triton.jit
def _attend_tile(
    state,
    q,
    tile,
    rows,
    cache,
    scores,
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
    position, oldest, end = rows
    k_ptr, v_ptr, table_ptr, stride_block, stride_token = cache
    scale, soft_cap, sliding_window, slopes = scores
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

            rows = (position, oldest, end)
            cache = (k_ptr, v_ptr, table_ptr, cache_stride_block, cache_stride_token)
            scores = (scale, soft_cap, sliding_window, slopes)
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
                        rows,
                        cache,
                        scores,
                        HEAD,
                        BLOCK_SIZE,
                        TILE,
                        HAS_SOFT_CAP,
                        HAS_SLOPES,
                        HAS_WINDOW,
                        MASKED=False,
                    )
                for tile in range(middle, stop):
                    state = _attend_tile(
                        state,
                        q,
                        tile,
                        rows,
                        cache,
                        scores,
                        HEAD,
                        BLOCK_SIZE,
                        TILE,
                        HAS_SOFT_CAP,
                        HAS_SLOPES,
                        HAS_WINDOW,
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
