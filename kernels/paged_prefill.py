"""Attention of many query rows of a sequence over the paged KV cache (reference.dense_attention).

FlashAttention-2 (Dao 2023) over pages, in Triton for any GPU; paged_prefill_hopper has the fast
one. Whole prompts, chunks of prompts and batches of them are one thing here: a list of tiles, each
BLOCK_M consecutive rows of one sequence, made on the host (engine.attention.prefill_plan). One
program computes one tile of one query head.

A row's result is that of the decode kernel to the bit: see attention_tiles.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pagetwin.kernels.attention_tiles import SPLIT, log2_scale, tile_size
from pagetwin.kernels.device import capability, gluon_kernels, num_multiprocessors
from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.paged_prefill_kernel import paged_prefill_kernel

BLOCK_M = 128
"""Rows of a tile of the work list."""


@dataclass(frozen=True)
class PrefillWork:
    """The tiles of one step, on the device."""

    tiles: Tensor
    """int32 [num_tiles, 4], long ones first: the tile's first row in q and that row's position in
    the sequence, the sequence's row in block_tables, and how many rows the tile has (at most
    BLOCK_M; 0 is padding)."""
    max_seq_len: int
    """At least the position of any tile's last row, plus 1; larger for a graph to be replayed."""


class _Launch(NamedTuple):
    """How the kernel is compiled: rows of a program, warps, stages of its loads."""

    m: int
    num_warps: int
    num_stages: int


def launch_shape(capability: int, head_size: int, itemsize: int, *, plain: bool) -> _Launch:
    """The largest shape that keeps its values in registers (test_compiles.py).

    `plain`: the head size is a power of two, and no option is used.
    """
    if itemsize > 2:
        return _Launch(32, 4, 1)
    if capability < 90:
        return _Launch(32, 8, 1)
    if head_size > 128 or not plain:
        return _Launch(32, 8, 2)
    return _Launch(128 if head_size <= 64 else 64, 8, 2)


_launch = {n: Launcher(paged_prefill_kernel, num_stages=n) for n in (1, 2)}


@functools.cache
def _device_facts(device: torch.device) -> tuple[int, int]:
    """Compute capability, and how many programs share the work if sums wait in memory."""
    if device.type != "cuda":
        return 90, 4
    return capability(device), 2 * num_multiprocessors(device)


def launch_portable(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    work: PrefillWork,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    """As paged_prefill, by this file's kernel."""
    num_heads, head_size = q.shape[1:]
    itemsize = kv_cache.itemsize
    capability, most_programs = _device_facts(q.device)
    is_whole = work.max_seq_len <= SPLIT
    head_padded = max(16, triton.next_power_of_2(head_size))
    plain = not (sliding_window or soft_cap) and alibi_slopes is None and head_padded == head_size
    m, num_warps, num_stages = launch_shape(capability, head_size, itemsize, plain=plain)
    num_items = len(work.tiles) * (BLOCK_M // m) * num_heads
    num_programs = num_items if is_whole else min(num_items, most_programs)
    folded = out
    if not is_whole:
        folded = torch.empty(num_programs, m, head_padded, dtype=torch.float32, device=q.device)
    _launch[num_stages](
        (num_programs, 1, 1),
        (
            q,
            kv_cache,
            block_tables,
            work.tiles,
            out,
            folded,
            out if alibi_slopes is None else alibi_slopes,
            out if sinks is None else sinks,
            num_items,
            log2_scale(scale),
            soft_cap,
            sliding_window,
            q.stride(0),
            out.stride(0),
            *kv_cache.stride()[:4],
            block_tables.stride(0),
        ),
        (
            num_heads,
            num_heads // kv_cache.shape[3],
            head_size,
            head_padded,
            kv_cache.shape[2],
            BLOCK_M,
            m,
            tile_size(head_size, itemsize),
            SPLIT,
            soft_cap != 0,
            alibi_slopes is not None,
            sinks is not None,
            sliding_window != 0,
            is_whole,
        ),
        num_warps,
    )


def hopper_refusal(q: Tensor, out: Tensor, kv_cache: Tensor) -> str | None:
    """Why paged_prefill_hopper does not serve these tensors; None if it does."""
    if not q.is_cuda:
        return "it runs on CUDA devices only"
    hopper = gluon_kernels("paged_prefill_hopper")
    return hopper if isinstance(hopper, str) else hopper.refusal(q, out, kv_cache)


def paged_prefill(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    work: PrefillWork,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    """Write the attention of the rows in `work` to the same rows of `out`, and no others.

    q, out [num_tokens, num_heads, head_size], a token's heads together; kv_cache [2, num_blocks,
    block_size, num_kv_heads, head_size], which holds the rows' own keys and values already;
    block_tables int32 [num_rows, max_blocks]. A row at position p sees the positions
    (p - sliding_window, p], or all up to p if sliding_window is 0. float32 [num_heads]
    alibi_slopes: slope * (key - query) is added to scores; sinks: one more score that every row
    sees, without a value. Nothing waits for the device.
    """
    head_size = q.shape[2]
    if q.stride()[1:] != (head_size, 1) or out.stride()[1:] != (head_size, 1):
        raise ValueError(
            f"paged_prefill: q and out have strides {q.stride()} and {out.stride()}, but a token's "
            f"heads must lie together: the last two must be ({head_size}, 1)"
        )
    if kv_cache.stride(4) != 1:
        raise ValueError(
            f"paged_prefill: kv_cache has strides {kv_cache.stride()}, but a head must be "
            "contiguous: the last must be 1"
        )
    if not len(work.tiles):
        return
    if not (soft_cap or alibi_slopes is not None) and hopper_refusal(q, out, kv_cache) is None:
        hopper: Any = gluon_kernels("paged_prefill_hopper")
        num_programs = num_multiprocessors(q.device)
        hopper.launch_hopper(
            out, q, kv_cache, block_tables, work.tiles, scale, sliding_window, sinks, num_programs
        )
    else:
        launch_portable(
            out,
            q,
            kv_cache,
            block_tables,
            work,
            scale,
            sliding_window,
            soft_cap,
            alibi_slopes,
            sinks,
        )


@torch.library.custom_op("pagetwin::paged_prefill", mutates_args={"out"})
def paged_prefill_op(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    tiles: Tensor,
    max_seq_len: int,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    """paged_prefill for graphs of torch's: `tiles` and `max_seq_len` are those of PrefillWork."""
    work = PrefillWork(tiles, max_seq_len)
    paged_prefill(
        out, q, kv_cache, block_tables, work, scale, sliding_window, soft_cap, alibi_slopes, sinks
    )


@paged_prefill_op.register_fake
def _(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    tiles: Tensor,
    max_seq_len: int,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    return None
