"""Copies whole KV blocks within a pool or between two, all layers in one launch (Triton)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048


@triton.jit
def move_blocks_kernel(
    source_ptr,
    target_ptr,
    sources_ptr,
    destinations_ptr,
    source_plane_stride,
    source_block_stride,
    target_plane_stride,
    target_block_stride,
    BLOCK_ELEMENTS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program per pair, plane and TILE elements."""
    pair = tl.program_id(0)
    plane = tl.program_id(1).to(tl.int64)
    element = tl.program_id(2) * TILE + tl.arange(0, TILE)
    inside = element < BLOCK_ELEMENTS
    source = plane * source_plane_stride + tl.load(sources_ptr + pair) * source_block_stride
    target = plane * target_plane_stride + tl.load(destinations_ptr + pair) * target_block_stride
    x = tl.load(source_ptr + source + element, mask=inside)
    tl.store(target_ptr + target + element, x, mask=inside)


def move_blocks(source: Tensor, target: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """As reference.move_blocks, of blocks none of which is both read and written.

    source, target [planes, num_blocks, ...], each block contiguous; sources, destinations int64
    [num_pairs]. The pairs are copied at once, in no order.
    """
    num_pairs, num_planes = len(sources), source.shape[0]
    if not num_pairs:
        return
    for name, pool in (("source", source), ("target", target)):
        if not pool[0, 0].is_contiguous():
            raise ValueError(
                f"move_blocks: blocks must be contiguous; the {name}'s strides are {pool.stride()}"
            )
    elements = source[0, 0].numel()
    move_blocks_kernel[(num_pairs, num_planes, triton.cdiv(elements, TILE))](
        source,
        target,
        sources,
        destinations,
        source.stride(0),
        source.stride(1),
        target.stride(0),
        target.stride(1),
        BLOCK_ELEMENTS=elements,
        TILE=TILE,
    )


def copy_blocks(pool: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """move_blocks within one pool."""
    move_blocks(pool, pool, sources, destinations)


move_blocks_op = torch.library.custom_op(
    "pagetwin::move_blocks", move_blocks, mutates_args={"target"}
)
move_blocks_op.register_fake(lambda source, target, sources, destinations: None)
copy_blocks_op = torch.library.custom_op(
    "pagetwin::copy_blocks", copy_blocks, mutates_args={"pool"}
)
copy_blocks_op.register_fake(lambda pool, sources, destinations: None)
