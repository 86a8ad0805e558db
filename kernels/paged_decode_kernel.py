"""The Triton kernel of paged_decode: a persistent loop over the items of a step."""

import math

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
from pagetwin.kernels.pdl import start_next, wait_for_previous

LOG2E: tl.constexpr = tl.constexpr(math.log2(math.e))


@triton.jit
def paged_decode_kernel(
    q_ptr,
    cache_ptr,
    tables_ptr,
    items_ptr,
    members_ptr,
    num_items_ptr,
    out_ptr,
    weighted_ptr,
    stats_ptr,
    arrivals_ptr,
    slopes_ptr,
    sinks_ptr,
    scale,
    soft_cap,
    sliding_window,
    q_stride_row,
    q_stride_head,
    cache_stride_side,
    cache_stride_block,
    table_stride,
    CACHE_STRIDE_TOKEN: tl.constexpr,
    CACHE_STRIDE_HEAD: tl.constexpr,
    CACHE_ALIGNMENT: tl.constexpr,
    TABLE_IS_ALIGNED: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    M: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Each program computes items, each for one KV head, until there are no more.

    The first is that of its number; for the others programs queue, so that none is idle while
    another has two to go. A CHUNK of consecutive keys lies in one block; it divides BLOCK_SIZE and
    TILE. TABLE_IS_ALIGNED: rows of the table hold whole tiles of ids, at multiples of 16 bytes.
    """
    start_next(PDL)
    num_programs = tl.num_programs(0)
    todo = tl.program_id(0)
    num_todo = tl.load(num_items_ptr) * NUM_KV_HEADS
    while todo < num_todo:
        item = items_ptr + todo // NUM_KV_HEADS * 4
        kv_head = todo % NUM_KV_HEADS
        end = tl.load(item + 1)
        table_ptr = tables_ptr + tl.load(item).to(tl.int64) * table_stride
        if TABLE_IS_ALIGNED:
            table_ptr = tl.multiple_of(table_ptr, 16)
        first_member = members_ptr + tl.load(item + 2) * 4
        num_members = tl.load(item + 3)
        split = tl.maximum(end - 1, 0) // SPLIT

        row = tl.arange(0, M)
        column = tl.arange(0, HEAD_PADDED)
        head = kv_head * GROUP + row % GROUP
        is_row = row < num_members * GROUP
        is_column = column < HEAD
        member = first_member + row // GROUP * 4
        query = tl.load(member, mask=is_row, other=0).to(tl.int64)

        start = split * SPLIT
        oldest = 0
        if HAS_WINDOW or slopes_ptr is not None:
            last = tl.load(member + 1, mask=is_row, other=2**30) - 1
        if HAS_WINDOW:
            oldest = tl.maximum(tl.min(last, 0) - sliding_window + 1, 0)
            start = tl.maximum(start, oldest // TILE * TILE)
        if slopes_ptr is not None:
            slopes = tl.load(slopes_ptr + head, mask=is_row, other=0.0) * LOG2E
        step_scale = scale
        if HAS_SOFT_CAP or slopes_ptr is not None:
            step_scale = 1.0

        # Block ids are read one tile ahead, so that the loads of keys wait for no other load.
        block = _block_ids(table_ptr, start, end, TABLE_IS_ALIGNED, BLOCK_SIZE, CHUNK, TILE)
        wait_for_previous(PDL)
        q_offsets = (query * q_stride_row + head * q_stride_head)[:, None] + column[None, :]
        q = tl.load(q_ptr + q_offsets, mask=is_row[:, None] & is_column[None, :], other=0.0)

        # Drawn before it is needed: the answer comes while this item is computed. (Not before the
        # wait: the kernel before may be another layer's, which counts with the same number.)
        next_todo = num_todo
        if num_programs < num_todo:
            ticket = tl.atomic_add(arrivals_ptr, 1, sem="relaxed")
            if ticket == num_todo - 1:
                # Every program has drawn the one ticket that is too many: this was the last.
                tl.store(arrivals_ptr, 0)
            next_todo = num_programs + ticket

        in_chunk = tl.arange(0, TILE) % CHUNK * CACHE_STRIDE_TOKEN
        in_chunk = in_chunk[:, None] + column[None, :]
        head_ptr = cache_ptr + kv_head * CACHE_STRIDE_HEAD
        maximum = tl.full([M], float("-inf"), tl.float32)
        sums = tl.zeros([M, sum_lanes(TILE)], tl.float32)
        weighted = tl.zeros([M, HEAD_PADDED], tl.float32)
        for tile in tl.range(start, end, TILE, num_stages=NUM_STAGES):
            # 64 bits before the multiplication: a pool has more than 2**31 elements.
            chunk_ptr = head_ptr + block.to(tl.int64) * cache_stride_block
            if CHUNK < BLOCK_SIZE:
                chunk = tile + tl.arange(0, TILE // CHUNK) * CHUNK
                chunk_ptr += chunk % BLOCK_SIZE * CACHE_STRIDE_TOKEN
            chunk_ptr = tl.broadcast_to(chunk_ptr[:, None], [TILE // CHUNK, CHUNK])
            key_ptr = tl.multiple_of(tl.reshape(chunk_ptr, [TILE]), CACHE_ALIGNMENT)
            k_ptr = key_ptr[:, None] + in_chunk
            v_ptr = (key_ptr + cache_stride_side)[:, None] + in_chunk
            key = tile + tl.arange(0, TILE)
            visible = key < end
            if HAS_WINDOW:
                visible = visible & (key >= oldest)
            # What is not visible is not loaded, so that NaN in it meets no weight of 0.
            readable = visible[:, None] & is_column[None, :]
            k = tl.load(k_ptr, mask=readable, other=0.0, eviction_policy="evict_first")
            v = tl.load(v_ptr, mask=readable, other=0.0, eviction_policy="evict_first")
            next_tile = tile + TILE
            block = _block_ids(table_ptr, next_tile, end, TABLE_IS_ALIGNED, BLOCK_SIZE, CHUNK, TILE)

            products = tl.dot(q, tl.trans(k), input_precision="ieee")
            if HAS_SOFT_CAP:
                products = soft_capped(products, scale, soft_cap)
            if slopes_ptr is not None:
                unit: tl.constexpr = 1.0
                distance = key[None, :] - last[:, None]
                products = with_alibi(products, unit if HAS_SOFT_CAP else scale, slopes, distance)
            visible = visible[None, :]
            if HAS_WINDOW:
                visible = visible & (key[None, :] > (last - sliding_window)[:, None])
            products = tl.where(visible, products, float("-inf"))
            weights, rescale, maximum, sums = softmax_step(
                products, step_scale, maximum, sums, M, TILE
            )
            weighted = weighted * rescale[:, None]
            weighted = tl.dot(weights.to(v.dtype), v, weighted, input_precision="ieee")
        total = total_sum(sums, M, sum_lanes(TILE))

        slot = tl.load(member + 2, mask=is_row, other=-1)
        part = (slot + split).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head
        part_ptr = weighted_ptr + part[:, None] * HEAD + column[None, :]
        is_part = slot >= 0
        tl.store(part_ptr, weighted, mask=is_part[:, None] & is_column[None, :])
        tl.store(stats_ptr + part * 2, maximum, mask=is_part)
        tl.store(stats_ptr + part * 2 + 1, total, mask=is_part)
        if sinks_ptr is not None:
            sink = tl.load(sinks_ptr + head, mask=is_row, other=0.0) * LOG2E
            _, total, weighted = fold_split(maximum, total, weighted, sink, 1.0, 0.0)
        result = normalised(weighted, total).to(out_ptr.dtype.element_ty)
        target = out_ptr + ((query * NUM_KV_HEADS * GROUP + head) * HEAD)[:, None] + column[None, :]
        is_whole = is_row & (slot < 0)
        tl.store(target, result, mask=is_whole[:, None] & is_column[None, :])
        if tl.max(slot, 0) >= 0:
            _arrive(
                first_member,
                num_members,
                out_ptr,
                weighted_ptr,
                stats_ptr,
                arrivals_ptr + 1,
                sinks_ptr,
                kv_head,
                NUM_KV_HEADS,
                GROUP,
                triton.next_power_of_2(M // GROUP),
                HEAD,
                HEAD_PADDED,
            )
        todo = next_todo


@triton.jit
def _block_ids(
    table_ptr,
    tile,
    end,
    TABLE_IS_ALIGNED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Ids of the blocks that hold a tile's chunks: any id for a chunk that does not matter."""
    nth = tl.arange(0, TILE // CHUNK)
    if CHUNK < BLOCK_SIZE:
        return tl.load(
            table_ptr + (tile + nth * CHUNK) // BLOCK_SIZE, mask=nth * CHUNK < end - tile, other=0
        )
    block_ptr = table_ptr + tl.multiple_of(tile // BLOCK_SIZE, TILE // CHUNK) + nth
    if TABLE_IS_ALIGNED:
        return tl.load(block_ptr, mask=tile < end, other=0)
    return tl.load(block_ptr, mask=nth * CHUNK < end - tile, other=0)


@triton.jit
def _arrive(
    first_member,
    num_members,
    out_ptr,
    weighted_ptr,
    stats_ptr,
    arrivals_ptr,
    sinks_ptr,
    kv_head,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    MEMBERS: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
):
    """Counts the item for each of its members, and folds those of which it was the last."""
    nth = tl.arange(0, MEMBERS)
    is_member = nth < num_members
    slot = tl.load(first_member + nth * 4 + 2, mask=is_member, other=-1)
    num_splits = tl.load(first_member + nth * 4 + 3, mask=is_member, other=0)
    # All threads' partial results come before the count, and the count before all threads' loads.
    tl.debug_barrier()
    counter = arrivals_ptr + slot * NUM_KV_HEADS + kv_head
    arrived = tl.atomic_add(counter, 1, mask=slot >= 0, sem="acq_rel")
    is_last = ((slot >= 0) & (arrived == num_splits - 1)).to(tl.int32)
    if tl.max(is_last, 0) > 0:
        for i in range(0, num_members):
            if tl.max(tl.where(nth == i, is_last, 0), 0) > 0:
                _fold_splits(
                    first_member + i * 4,
                    out_ptr,
                    weighted_ptr,
                    stats_ptr,
                    arrivals_ptr,
                    sinks_ptr,
                    kv_head,
                    NUM_KV_HEADS,
                    GROUP,
                    HEAD,
                    HEAD_PADDED,
                )


@triton.jit
def _fold_splits(
    member,
    out_ptr,
    weighted_ptr,
    stats_ptr,
    arrivals_ptr,
    sinks_ptr,
    kv_head,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
):
    """Folds all splits of a sequence, for one KV head, and makes its counter 0 again."""
    NUM_AT_ONCE: tl.constexpr = 4
    query = tl.load(member).to(tl.int64)
    slot = tl.load(member + 2)
    num_splits = tl.load(member + 3)
    tl.store(arrivals_ptr + slot * NUM_KV_HEADS + kv_head, 0)
    nth = tl.arange(0, triton.next_power_of_2(GROUP))
    column = tl.arange(0, HEAD_PADDED)
    head = kv_head * GROUP + nth
    is_column = column < HEAD
    maximum = tl.full([nth.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([nth.shape[0]], tl.float32)
    weighted = tl.zeros([nth.shape[0], HEAD_PADDED], tl.float32)
    for first in range(0, num_splits, NUM_AT_ONCE):
        for i in tl.static_range(NUM_AT_ONCE):
            is_head = nth < tl.where(first + i < num_splits, GROUP, 0)
            part = (slot + first + i).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head
            # Other processors wrote these: not from this one's own cache.
            stats = stats_ptr + part * 2
            split_maximum = tl.load(stats, is_head, float("-inf"), cache_modifier=".cg")
            split_total = tl.load(stats + 1, is_head, 0.0, cache_modifier=".cg")
            split_ptr = weighted_ptr + part[:, None] * HEAD + column[None, :]
            in_heads = is_head[:, None] & is_column[None, :]
            split_weighted = tl.load(split_ptr, in_heads, 0.0, cache_modifier=".cg")
            maximum, total, weighted = fold_split(
                maximum, total, weighted, split_maximum, split_total, split_weighted
            )
    is_head = nth < GROUP
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head, is_head, 0.0) * LOG2E
        maximum, total, weighted = fold_split(maximum, total, weighted, sink, 1.0, 0.0)
    result = normalised(weighted, total).to(out_ptr.dtype.element_ty)
    target = out_ptr + ((query * NUM_KV_HEADS * GROUP + head) * HEAD)[:, None] + column[None, :]
    tl.store(target, result, mask=is_head[:, None] & is_column[None, :])
