"""Copies whole KV blocks within a pool, all layers in one launch (Triton)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048


@triton.jit
def copy_blocks_kernel(
    pool_ptr,
    sources_ptr,
    destinations_ptr,
    plane_stride,
    block_stride,
    BLOCK_ELEMENTS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program per pair, plane and TILE elements."""
    pair = tl.program_id(0)
    plane = pool_ptr + tl.program_id(1).to(tl.int64) * plane_stride
    element = tl.program_id(2) * TILE + tl.arange(0, TILE)
    inside = element < BLOCK_ELEMENTS
    source = plane + tl.load(sources_ptr + pair) * block_stride
    destination = plane + tl.load(destinations_ptr + pair) * block_stride
    tl.store(destination + element, tl.load(source + element, mask=inside), mask=inside)


@torch.library.custom_op("pagetwin::copy_blocks", mutates_args={"pool"})
def copy_blocks(pool: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """As reference.copy_blocks, for blocks none of which is both a source and a destination.

    pool [planes, num_blocks, ...], each block contiguous; sources, destinations int64 [num_pairs].
    The pairs are copied at once, in no order.
    """
    num_planes = pool.shape[0]
    elements = pool[0, 0].numel()
    if not pool[0, 0].is_contiguous():
        raise ValueError(f"copy_blocks: blocks must be contiguous; strides are {pool.stride()}")
    if not len(sources):
        return
    copy_blocks_kernel[(len(sources), num_planes, triton.cdiv(elements, _TILE))](
        pool,
        sources,
        destinations,
        pool.stride(0),
        pool.stride(1),
        BLOCK_ELEMENTS=elements,
        TILE=_TILE,
    )


@copy_blocks.register_fake
def _(pool: Tensor, sources: Tensor, destinations: Tensor) -> None:
    return None
