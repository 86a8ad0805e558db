"""Ends of items of decode attention in Gluon: results, or partial ones that wait for the last."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from pagetwin.kernels.decode_queue_hopper import ROWS
from pagetwin.kernels.wgmma_softmax import fold_split

# Its name since Triton 3.7, and before.
_thread_barrier = getattr(gl, "barrier", None) or gl.thread_barrier


@gluon.jit
def store_result(
    state, row_of, results, split, any_part, NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr
):
    """An item's rows: as partial results where a sequence has several splits, else normalised.

    `state` is (maximum, total, weighted) of 64 rows in the layout of a product; `row_of` tells of
    each row whether it is one, which query and head, and its slot.
    """
    maximum, total, weighted = state
    is_row, query, head, slot = row_of
    out_ptr, weighted_ptr, stats_ptr, _ = results
    NUM_HEADS: gl.constexpr = NUM_KV_HEADS * GROUP
    HEAD: gl.constexpr = weighted.shape[1]
    column = gl.arange(0, HEAD, gl.SliceLayout(0, weighted.type.layout))
    is_column = (column >= 0)[None, :]
    if any_part:
        part = (slot + split).to(gl.int64) * NUM_HEADS + head
        is_part = slot >= 0
        part_ptr = weighted_ptr + (part * HEAD)[:, None] + column[None, :]
        gl.store(part_ptr, weighted, mask=is_part[:, None] & is_column)
        gl.store(stats_ptr + part * 2, maximum, mask=is_part)
        gl.store(stats_ptr + part * 2 + 1, total, mask=is_part)
    total = gl.where(total == 0.0, 1.0, total)
    result = (weighted / total[:, None]).to(out_ptr.dtype.element_ty)
    target = out_ptr + ((query * NUM_HEADS + head) * HEAD)[:, None] + column[None, :]
    gl.store(target, result, mask=(is_row & (slot < 0))[:, None] & is_column)


@gluon.jit
def arrive(
    first_member,
    num_members,
    results,
    kv_head,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD: gl.constexpr,
):
    """As _arrive of paged_decode_kernel."""
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    MEMBERS: gl.constexpr = triton.next_power_of_2(ROWS // GROUP)
    _, _, _, arrivals_ptr = results
    nth = gl.arange(0, MEMBERS, LINE)
    is_member = nth < num_members
    slot = gl.load(first_member + nth * 4 + 2, mask=is_member, other=-1)
    num_splits = gl.load(first_member + nth * 4 + 3, mask=is_member, other=0)
    # All threads' partial results come before the count, and the count before all threads' loads.
    _thread_barrier()
    counter = arrivals_ptr + 1 + slot * NUM_KV_HEADS + kv_head
    one = gl.full_like(slot, 1)
    arrived = gl.atomic_add(counter, one, mask=slot >= 0, sem="acq_rel")
    is_last = ((slot >= 0) & (arrived == num_splits - 1)).to(gl.int32)
    if gl.max(is_last, 0) > 0:
        for i in range(0, num_members):
            if gl.max(gl.where(nth == i, is_last, 0), 0) > 0:
                _fold_splits(first_member + i * 4, results, kv_head, NUM_KV_HEADS, GROUP, HEAD)


@gluon.jit
def _fold_splits(
    member,
    results,
    kv_head,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD: gl.constexpr,
):
    """As _fold_splits of paged_decode_kernel."""
    NUM_AT_ONCE: gl.constexpr = 4
    HEADS: gl.constexpr = triton.next_power_of_2(GROUP)
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 4], [128 // HEAD, HEAD // 4], [4, 1], [1, 0])
    ROW: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    out_ptr, weighted_ptr, stats_ptr, arrivals_ptr = results
    query = gl.load(member).to(gl.int64)
    slot = gl.load(member + 2)
    num_splits = gl.load(member + 3)
    gl.store(arrivals_ptr + 1 + slot * NUM_KV_HEADS + kv_head, 0)
    nth = gl.arange(0, HEADS, ROW)
    column = gl.arange(0, HEAD, gl.SliceLayout(0, LAYOUT))
    head = kv_head * GROUP + nth
    is_column = (column >= 0)[None, :]
    maximum = gl.full([HEADS], float("-inf"), gl.float32, ROW)
    total = gl.zeros([HEADS], gl.float32, ROW)
    weighted = gl.zeros([HEADS, HEAD], gl.float32, LAYOUT)
    for first in range(0, num_splits, NUM_AT_ONCE):
        for i in gl.static_range(NUM_AT_ONCE):
            is_head = nth < gl.where(first + i < num_splits, GROUP, 0)
            part = (slot + first + i).to(gl.int64) * (NUM_KV_HEADS * GROUP) + head
            # Other processors wrote these: not from this one's own cache.
            stats = stats_ptr + part * 2
            split_maximum = gl.load(stats, is_head, float("-inf"), cache_modifier=".cg")
            split_total = gl.load(stats + 1, is_head, 0.0, cache_modifier=".cg")
            split_ptr = weighted_ptr + (part * HEAD)[:, None] + column[None, :]
            in_heads = is_head[:, None] & is_column
            split_weighted = gl.load(split_ptr, in_heads, 0.0, cache_modifier=".cg")
            maximum, total, weighted = fold_split(
                maximum, total, weighted, split_maximum, split_total, split_weighted
            )
    total = gl.where(total == 0.0, 1.0, total)
    result = (weighted / total[:, None]).to(out_ptr.dtype.element_ty)
    target = out_ptr + ((query * NUM_KV_HEADS * GROUP + head) * HEAD)[:, None] + column[None, :]
    gl.store(target, result, mask=(nth < GROUP)[:, None] & is_column)
