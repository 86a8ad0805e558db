"""Attention of single query rows over the paged KV cache (Triton; reference.dense_attention).

Flash decoding (Dao et al. 2023): the keys of a sequence are split at absolute positions, one
program computes one split for all query heads of one KV head (so that a key is read once), and a
second kernel merges the splits in ascending order. Splits have a fixed length, not a fixed number:
a row's result does not depend on the batch beside it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT_LENGTH = 1024
"""Positions of a split; a multiple of every tile size."""


@triton.jit
def paged_decode_kernel(
    q_ptr,
    cache_ptr,
    block_tables_ptr,
    query_start_ptr,
    seq_lens_ptr,
    out_ptr,
    partial_ptr,
    max_ptr,
    sum_ptr,
    scale,
    soft_cap,
    sliding_window,
    q_stride_row,
    q_stride_head,
    cache_stride_side,
    cache_stride_block,
    cache_stride_token,
    cache_stride_head,
    table_stride,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """One program per sequence, KV head and split. IS_WHOLE: there is one split, so write `out`."""
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    row = tl.load(query_start_ptr + sequence).to(tl.int64)
    if tl.load(query_start_ptr + sequence + 1) - row != 1:
        return
    length = tl.load(seq_lens_ptr + sequence)
    start = split * SPLIT
    end = tl.minimum(start + SPLIT, length)
    oldest = 0
    if HAS_WINDOW:
        oldest = tl.maximum(length - sliding_window, 0)
        start = tl.maximum(start, oldest // TILE * TILE)

    member = tl.arange(0, GROUP_PADDED)
    column = tl.arange(0, HEAD_PADDED)
    head = kv_head * GROUP + member
    is_head = member < GROUP
    is_column = column < HEAD
    in_q = is_head[:, None] & is_column[None, :]
    q_offsets = row * q_stride_row + head[:, None] * q_stride_head + column[None, :]
    q = tl.load(q_ptr + q_offsets, mask=in_q, other=0.0)

    LOG2E: tl.constexpr = 1.4426950408889634
    maximum = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    weighted = tl.zeros([GROUP_PADDED, HEAD_PADDED], tl.float32)
    for tile in range(start, end, TILE):
        position = tile + tl.arange(0, TILE)
        visible = position < end
        if HAS_WINDOW:
            visible = visible & (position >= oldest)
        # 64 bits before the multiplication: a pool has more than 2**31 elements.
        block = tl.load(
            block_tables_ptr + sequence * table_stride + position // BLOCK_SIZE,
            mask=visible,
            other=0,
        ).to(tl.int64)
        slot = block * cache_stride_block + position % BLOCK_SIZE * cache_stride_token
        offsets = (slot + kv_head * cache_stride_head)[:, None] + column[None, :]
        # What is not visible is not loaded, so that NaN in it meets no weight of 0.
        readable = visible[:, None] & is_column[None, :]
        k = tl.load(cache_ptr + offsets, mask=readable, other=0.0)
        v = tl.load(cache_ptr + cache_stride_side + offsets, mask=readable, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if HAS_SOFT_CAP:
            # tanh(x) = 1 - 2 / (exp(2x) + 1): one exponential, no inf / inf.
            scores = soft_cap * (1 - 2 / (tl.exp2(scores * (2 * LOG2E / soft_cap)) + 1))
        scores = tl.where(visible[None, :], scores * LOG2E, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp2(scores - new_maximum[:, None])
        rescale = tl.exp2(maximum - new_maximum)
        total = total * rescale + tl.sum(weights, 1)
        weighted = weighted * rescale[:, None]
        weighted = tl.dot(weights.to(v.dtype), v, weighted, input_precision="ieee")
        maximum = new_maximum

    if IS_WHOLE:
        result = weighted / tl.where(total > 0, total, 1.0)[:, None]
        out_head = row * NUM_KV_HEADS * GROUP + head
        target = out_ptr + out_head[:, None] * HEAD + column[None, :]
        tl.store(target, result.to(out_ptr.dtype.element_ty), mask=in_q)
    else:
        num_splits = tl.num_programs(2)
        part = (sequence.to(tl.int64) * NUM_KV_HEADS * GROUP + head) * num_splits + split
        tl.store(max_ptr + part, maximum, mask=is_head)
        tl.store(sum_ptr + part, total, mask=is_head)
        tl.store(partial_ptr + part[:, None] * HEAD + column[None, :], weighted, mask=in_q)


@triton.jit
def merge_splits_kernel(
    partial_ptr,
    max_ptr,
    sum_ptr,
    query_start_ptr,
    out_ptr,
    num_splits,
    NUM_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
):
    """One program per sequence and head. A split without visible keys has sum 0: it is skipped."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(query_start_ptr + sequence).to(tl.int64)
    if tl.load(query_start_ptr + sequence + 1) - row != 1:
        return
    column = tl.arange(0, HEAD_PADDED)
    is_column = column < HEAD
    first = (sequence.to(tl.int64) * NUM_HEADS + head) * num_splits
    maximum = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    weighted = tl.zeros([HEAD_PADDED], tl.float32)
    for split in range(0, num_splits):
        part_total = tl.load(sum_ptr + first + split)
        if part_total > 0:
            part_maximum = tl.load(max_ptr + first + split)
            new_maximum = tl.maximum(maximum, part_maximum)
            old_weight = tl.exp2(maximum - new_maximum)
            part_weight = tl.exp2(part_maximum - new_maximum)
            part = tl.load(partial_ptr + (first + split) * HEAD + column, mask=is_column, other=0.0)
            total = total * old_weight + part_total * part_weight
            weighted = weighted * old_weight + part * part_weight
            maximum = new_maximum
    result = weighted / tl.where(total > 0, total, 1.0)
    target = out_ptr + (row * NUM_HEADS + head) * HEAD + column
    tl.store(target, result.to(out_ptr.dtype.element_ty), mask=is_column)


def tile_size(head_size: int, itemsize: int) -> int:
    """Keys per tile: as many as 4 warps hold without spilling registers (test_compiles.py)."""
    largest = 8192 if itemsize <= 2 else 2048
    return max(16, min(64, largest // int(triton.next_power_of_2(head_size))))


@torch.library.custom_op("pagetwin::paged_decode", mutates_args={"out"})
def paged_decode(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    max_seq_len: int,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    split_length: int = SPLIT_LENGTH,
) -> None:
    """Write the attention of every sequence that has one row to that row of `out`.

    q, out [num_tokens, num_heads, head_size], out contiguous; kv_cache [2, num_blocks, block_size,
    num_kv_heads, head_size]; block_tables int32 [num_seqs, max_blocks]; query_start_loc int32
    [num_seqs + 1]; seq_lens int32 [num_seqs]. The row stands at position seq_lens - 1 and sees
    the sliding_window positions up to there (0: all). Rows of other sequences are left alone; a
    sequence of length 0 gets 0. Nothing waits for the device.
    """
    num_seqs = len(seq_lens)
    num_heads, head_size = q.shape[1:]
    num_kv_heads = kv_cache.shape[3]
    group = num_heads // num_kv_heads
    num_splits = max(1, triton.cdiv(max_seq_len, split_length))
    tile = tile_size(head_size, kv_cache.itemsize)
    if q.stride(2) != 1 or kv_cache.stride(4) != 1 or not out.is_contiguous():
        raise ValueError(
            "paged_decode: the last dimension of q and kv_cache must be contiguous, and all of "
            f"out; strides are {q.stride()}, {kv_cache.stride()}, {out.stride()}"
        )
    if split_length % tile:
        raise ValueError(f"paged_decode: split_length={split_length} is no multiple of {tile}")
    if not num_seqs:
        return
    whole = num_splits == 1
    parts = (0,) if whole else (num_seqs, num_heads, num_splits)
    partial = torch.empty((*parts, head_size), dtype=torch.float32, device=q.device)
    maxima = torch.empty(parts, dtype=torch.float32, device=q.device)
    totals = torch.empty(parts, dtype=torch.float32, device=q.device)
    paged_decode_kernel[(num_seqs, num_kv_heads, num_splits)](
        q,
        kv_cache,
        block_tables,
        query_start_loc,
        seq_lens,
        out,
        partial,
        maxima,
        totals,
        scale,
        soft_cap,
        sliding_window,
        q.stride(0),
        q.stride(1),
        *kv_cache.stride()[:4],
        block_tables.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        GROUP_PADDED=max(16, triton.next_power_of_2(group)),
        HEAD=head_size,
        HEAD_PADDED=max(16, triton.next_power_of_2(head_size)),
        BLOCK_SIZE=kv_cache.shape[2],
        TILE=tile,
        SPLIT=split_length,
        HAS_SOFT_CAP=soft_cap != 0,
        HAS_WINDOW=sliding_window != 0,
        IS_WHOLE=whole,
        num_warps=4,
        num_stages=2,
    )
    if not whole:
        merge_splits_kernel[(num_seqs, num_heads)](
            partial,
            maxima,
            totals,
            query_start_loc,
            out,
            num_splits,
            NUM_HEADS=num_heads,
            HEAD=head_size,
            HEAD_PADDED=triton.next_power_of_2(head_size),
            num_warps=1,
        )


@paged_decode.register_fake
def _(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    max_seq_len: int,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    split_length: int = SPLIT_LENGTH,
) -> None:
    return None
