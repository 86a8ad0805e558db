"""Pages of the KV cache as Hopper's attention kernels read them: boxes that TMA fetches, in Gluon.

To TMA the cache is a matrix: a row holds a token's keys of all heads, or its values, and rows of
values come after those of keys. A box is some keys of one block by 64 columns, the width of the
swizzle; a tile's columns from 64 on lie behind its first 64.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from pagetwin.kernels.device import capability
from pagetwin.kernels.wgmma_softmax import TILE

SIDE = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
"""16-bit rows for wgmma and TMA, 64 columns after 64 columns, swizzled over 128 bytes."""
_SIDE: gl.constexpr = gl.constexpr(SIDE)


class Pages(NamedTuple):
    """A cache, to TMA."""

    descriptor: TensorDescriptor
    box: int
    """Keys of a box; it divides the block size and the tile."""
    first_value_row: int
    no_row: int
    """From here on there is nothing: a box of that reads no memory and holds 0."""


def pages_of(kv_cache: Tensor) -> Pages:
    """kv_cache as paged_prefill has it, where refusal() has no objection."""
    _, num_blocks, block_size, num_kv_heads, head_size = kv_cache.shape
    side, _, token, _, _ = kv_cache.stride()
    box = math.gcd(block_size, TILE.value)
    first_value_row = side // token
    no_row = first_value_row + num_blocks * block_size
    shape = [no_row, num_kv_heads * head_size]
    descriptor = TensorDescriptor(kv_cache, shape, [token, 1], [box, 64], SIDE)
    return Pages(descriptor, box, first_value_row, no_row)


def refusal(kv_cache: Tensor) -> str | None:
    """Why a cache cannot be read in this way; None if it can."""
    block_size, _, head_size = kv_cache.shape[2:]
    side, block, token, head = kv_cache.stride()[:4]
    if capability(kv_cache.device) != 90:
        return "it is for compute capability 9.0"
    if kv_cache.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {kv_cache.dtype}"
    if head_size not in (64, 128):
        return f"it takes head sizes 64 and 128, not {head_size}"
    if block_size % 16:
        return f"it takes blocks of a multiple of 16 tokens, not {block_size}"
    if head != head_size or block != block_size * token or side % token:
        return f"the cache has strides {kv_cache.stride()}, where its tokens are no equal rows"
    if 2 * side // token >= 2**31:
        return f"the cache has {side // token} tokens, more than 30 bits"
    if kv_cache.data_ptr() % 16 or token * 2 % 16:
        return "the cache is not aligned to 16 bytes"
    return None


@gluon.jit
def clear_values(v_smem, stage, start, stop):
    """Zero the values of the stage's keys [start, stop), which nothing may see: 0 * NaN is NaN."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    HALVES: gl.constexpr = v_smem.shape[2] // 64
    strip_shape: gl.constexpr = [v_smem.shape[0] * HALVES * 8, 16, 64]
    strips = v_smem._reinterpret(v_smem.dtype, strip_shape, _SIDE)
    key = gl.arange(0, 16, gl.SliceLayout(1, LAYOUT))
    for i in range(start // 16, gl.cdiv(stop, 16)):
        kept = (i * 16 + key < start) | (i * 16 + key >= stop)
        for half in gl.static_range(HALVES):
            strip = strips.index((stage * HALVES + half) * 8 + i)
            values = strip.load(LAYOUT)
            strip.store(gl.where(kept[:, None], values, gl.zeros_like(values)))
    fence_async_shared()
