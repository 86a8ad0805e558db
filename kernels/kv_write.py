"""Writes a step's keys and values to their slots of the paged cache (Triton)."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def write_kv_kernel(
    k_ptr,
    v_ptr,
    cache_ptr,
    slots_ptr,
    k_stride,
    v_stride,
    side_stride,
    block_stride,
    token_stride,
    BLOCK_SIZE: tl.constexpr,
    ROW: tl.constexpr,
    ROW_PADDED: tl.constexpr,
):
    """One program per token: its ROW = num_kv_heads * head_size keys, and as many values."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    column = tl.arange(0, ROW_PADDED)
    inside = column < ROW
    target = cache_ptr + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * token_stride
    k = tl.load(k_ptr + token * k_stride + column, mask=inside)
    v = tl.load(v_ptr + token * v_stride + column, mask=inside)
    tl.store(target + column, k, mask=inside)
    tl.store(target + side_stride + column, v, mask=inside)


def write_kv(k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """As reference.write_kv; the heads of a token lie together in k, v and the cache."""
    num_tokens, num_kv_heads, head_size = k.shape
    row = num_kv_heads * head_size
    for name, tensor in (("k", k), ("v", v), ("kv_cache", kv_cache)):
        if tensor.stride()[-2:] != (head_size, 1):
            raise ValueError(
                f"write_kv: {name} has strides {tensor.stride()}, but a token's heads must lie "
                f"together: the last two must be ({head_size}, 1); pass a contiguous tensor"
            )
    if not num_tokens:
        return
    write_kv_kernel[(num_tokens,)](
        k,
        v,
        kv_cache,
        slot_mapping,
        k.stride(0),
        v.stride(0),
        kv_cache.stride(0),
        kv_cache.stride(1),
        kv_cache.stride(2),
        BLOCK_SIZE=kv_cache.shape[2],
        ROW=row,
        ROW_PADDED=triton.next_power_of_2(row),
    )


write_kv_op = torch.library.custom_op("pagetwin::write_kv", write_kv, mutates_args={"kv_cache"})
write_kv_op.register_fake(lambda k, v, kv_cache, slot_mapping: None)
