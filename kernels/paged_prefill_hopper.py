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
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from pagetwin.kernels import pages_hopper
from pagetwin.kernels.attention_tiles import SPLIT, log2_scale
from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.pages_hopper import SIDE, pages_of
from pagetwin.kernels.prefill_attend_hopper import attend
from pagetwin.kernels.prefill_load_hopper import GROUP_ROWS, load_tiles
from pagetwin.kernels.wgmma_softmax import TILE, register_order

_STAGES = 2
"""Tiles of keys and values in memory: as many as fit beside what has been folded."""
_SIDE: gl.constexpr = gl.constexpr(SIDE)


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
            (attend, (rings, folded0, work, 0, NUM_HEADS, BOX, SPLIT, HAS_WINDOW, HAS_SINKS)),
            (attend, (rings, folded1, work, 1, NUM_HEADS, BOX, SPLIT, HAS_WINDOW, HAS_SINKS)),
            (
                load_tiles,
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


_launch = Launcher(paged_prefill_hopper_kernel)


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
    _launch(
        (min(num_items, num_programs), 1, 1),
        (
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
        ),
        (
            num_heads,
            num_heads // num_kv_heads,
            head_size,
            block_size,
            pages.box,
            SPLIT,
            _STAGES,
            sliding_window != 0,
            sinks is not None,
        ),
    )
