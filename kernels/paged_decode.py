"""Attention of single query rows over the paged KV cache (Triton; reference.dense_attention).

Flash decoding (Dao et al. 2023) with splits of a fixed length instead of a fixed number, so that a
row's result does not depend on the batch beside it (attention_tiles). The host lists what there
is to do (engine.attention.decode_plan): an item is one split, for one sequence or for several whose
tables hold the very same blocks over all of the split, so that a shared prefix is read once. One
program computes an item for all query heads of one KV head. The last of a sequence's items to
arrive folds its splits. paged_decode_hopper has the fast kernel, to the same bits; what it does not
do, and other GPUs, have a portable one.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pagetwin.kernels.attention_tiles import SPLIT, log2_scale, tile_size
from pagetwin.kernels.device import capability, gluon_kernels, num_multiprocessors
from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.paged_decode_kernel import paged_decode_kernel

FEW = 64
"""Programs that leave half of a GPU's processors idle."""


def rows_per_item(group: int) -> int:
    """Rows of the matrix products of an item: query heads of a KV head, times sequences."""
    return max(16, int(triton.next_power_of_2(group)))


def members_per_item(group: int) -> int:
    """The most sequences that an item may be for; `group` is query heads per KV head."""
    return rows_per_item(group) // group


@dataclass(frozen=True)
class DecodeWork:
    """The items of one step, on the device; all int32. The grid depends on shapes alone."""

    items: Tensor
    """[capacity, 4], long ones first: row of block_tables, end of the keys (which begin at the last
    multiple of SPLIT before it; 0 = there are none), first member, number of members."""
    members: Tensor
    """[num_seqs, 4]: row of q and out, length of the sequence, the slot for the partial result of
    its first split (-1 = it has one split alone), number of splits."""
    num_items: Tensor
    """[1]"""


@dataclass(frozen=True)
class DecodeScratch:
    """Where partial results wait for the last split of their sequence. One launch at a time."""

    weighted: Tensor
    """float32 [num_slots, num_heads, head_size]"""
    stats: Tensor
    """float32 [num_slots, num_heads, 2]: maximum, total."""
    arrivals: Tensor
    """int32 [1 + num_slots * num_kv_heads]: how many programs have asked for another item; then, at
    the first slot of a sequence, how many of its splits are done. All 0 between launches."""

    @classmethod
    def of(
        cls, num_slots: int, num_heads: int, num_kv_heads: int, head_size: int, device: torch.device
    ) -> "DecodeScratch":
        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            weighted=zeros(num_slots, num_heads, head_size),
            stats=zeros(num_slots, num_heads, 2),
            arrivals=zeros(1 + num_slots * num_kv_heads, dtype=torch.int32),
        )


class LaunchShape(NamedTuple):
    """Warps of a program and stages of its loads; they show in no bit."""

    num_warps: int
    num_stages: int


@functools.cache
def launch_shape(
    capability: int, group: int, head_size: int, itemsize: int, *, few: bool
) -> LaunchShape:
    """What was fastest on an H100 (90) under Triton 3.6; elsewhere, what keeps values in registers.

    With a third stage a program computes without a pause, but then a processor has room for one
    program alone; many programs do better side by side, so it is for steps of `few`.
    """
    if itemsize > 2:
        return LaunchShape(4, 3)
    if not triton.__version__.startswith("3.6."):
        return LaunchShape(8, 3)
    if capability < 90:
        return LaunchShape(8, 3 if group > 16 else 2)
    return LaunchShape(8 if group > 16 else 4, 3 if few or head_size > 128 else 2)


_launch = {n: Launcher(paged_decode_kernel, num_stages=n) for n in (2, 3)}


@functools.cache
def _device_facts(device: torch.device) -> tuple[int, int]:
    """Compute capability, and the most programs of a launch; few for the interpreter.

    Of the portable kernel two for each processor were fastest on an H100: more take turns in
    reading. The one for Hopper fills a processor with one.
    """
    if device.type != "cuda":
        return 90, 5
    return capability(device), 2 * num_multiprocessors(device)


def hopper_refusal(q: Tensor, kv_cache: Tensor) -> str | None:
    """Why paged_decode_hopper does not serve these tensors; None if it does."""
    if not q.is_cuda:
        return "it runs on CUDA devices only"
    hopper = gluon_kernels("paged_decode_hopper")
    return hopper if isinstance(hopper, str) else hopper.refusal(q, kv_cache)


def paged_decode(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    work: DecodeWork,
    scratch: DecodeScratch,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    """Write the attention of the rows in `work` to the same rows of `out`, and no others.

    q, out [num_tokens, num_heads, head_size], out contiguous; kv_cache [2, num_blocks, block_size,
    num_kv_heads, head_size], which holds the rows' own keys and values already; block_tables int32
    [num_rows, max_blocks]. A row is the last position of its sequence and sees the sliding_window
    positions up to there (0: all). float32 [num_heads] alibi_slopes: slope * (key - query) is
    added to scores; sinks: one more score that every row sees, without a value. Nothing waits
    for the device.
    """
    strides = kv_cache.stride()
    if q.stride(2) != 1 or strides[4] != 1 or not out.is_contiguous():
        raise ValueError(
            "paged_decode: the last dimension of q and kv_cache must be contiguous, and all of "
            f"out; strides are {q.stride()}, {strides}, {out.stride()}; pass contiguous tensors"
        )
    if scale <= 0:
        raise ValueError(f"paged_decode: scale={scale} must be positive, for maxima to stay maxima")
    if not len(work.items):
        return
    plain = not (sliding_window or soft_cap) and alibi_slopes is None and sinks is None
    if plain and hopper_refusal(q, kv_cache) is None:
        hopper: Any = gluon_kernels("paged_decode_hopper")
        most_programs = num_multiprocessors(q.device)
        hopper.launch_hopper(out, q, kv_cache, block_tables, work, scratch, scale, most_programs)
    else:
        launch_portable(
            out,
            q,
            kv_cache,
            block_tables,
            work,
            scratch,
            scale,
            sliding_window,
            soft_cap,
            alibi_slopes,
            sinks,
        )


def launch_portable(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    work: DecodeWork,
    scratch: DecodeScratch,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    """As paged_decode, by paged_decode_kernel."""
    num_heads, head_size = q.shape[1:]
    block_size, num_kv_heads = kv_cache.shape[2:4]
    group = num_heads // num_kv_heads
    itemsize = kv_cache.itemsize
    tile = tile_size(head_size, itemsize)
    strides = kv_cache.stride()
    chunk = math.gcd(block_size, tile)
    table_stride = block_tables.stride(0)
    capability, most_programs = _device_facts(q.device)
    few = len(work.members) * num_kv_heads <= FEW
    shape = launch_shape(capability, group, head_size, itemsize, few=few)
    num_programs = min(len(work.items) * num_kv_heads, most_programs)
    _launch[shape.num_stages](
        (num_programs, 1, 1),
        (
            q,
            kv_cache,
            block_tables,
            work.items,
            work.members,
            work.num_items,
            out,
            scratch.weighted,
            scratch.stats,
            scratch.arrivals,
            alibi_slopes,
            sinks,
            log2_scale(scale),
            soft_cap,
            sliding_window,
            q.stride(0),
            q.stride(1),
            strides[0],
            strides[1],
            table_stride,
        ),
        (
            strides[2],
            strides[3],
            math.gcd(16, kv_cache.data_ptr(), *(n * itemsize for n in strides[:4])),
            table_stride % max(4, tile // chunk) == 0 and block_tables.data_ptr() % 16 == 0,
            num_kv_heads,
            group,
            rows_per_item(group),
            head_size,
            max(16, triton.next_power_of_2(head_size)),
            block_size,
            chunk,
            tile,
            SPLIT,
            soft_cap != 0,
            sliding_window != 0,
            shape.num_stages,
        ),
        shape.num_warps,
    )


@torch.library.custom_op(
    "pagetwin::paged_decode", mutates_args={"out", "weighted", "stats", "arrivals"}
)
def paged_decode_op(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    items: Tensor,
    members: Tensor,
    num_items: Tensor,
    weighted: Tensor,
    stats: Tensor,
    arrivals: Tensor,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    """paged_decode as an operator of torch."""
    work = DecodeWork(items, members, num_items)
    scratch = DecodeScratch(weighted, stats, arrivals)
    options = (scale, sliding_window, soft_cap, alibi_slopes, sinks)
    paged_decode(out, q, kv_cache, block_tables, work, scratch, *options)


@paged_decode_op.register_fake
def _(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    items: Tensor,
    members: Tensor,
    num_items: Tensor,
    weighted: Tensor,
    stats: Tensor,
    arrivals: Tensor,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    return None
