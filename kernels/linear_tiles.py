"""The product of few rows with a weight, and what stands around it in a layer (Triton).

y = x W^T + bias, rounded to the dtype of y; then either added to a residual and rounded again, or,
if gated, silu(gate) * up of the outputs' first and second half, rounded again.

A row's bits depend on its values alone: each output is one chain of additions over k in ascending
order, 16 products at a time, which is what the tensor cores do for any tile and cuBLAS does where
it does not split K. So tiles may follow the number of rows.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pagetwin.kernels.activation import silu
from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.pdl import start_next, wait_for_previous

LINE = tl.constexpr(128)
"""Bytes that the L2 cache fetches at a time."""


@triton.jit
def prefetch_rows(row_ptrs, SIZE: tl.constexpr):
    """Bring the first 64 lines, at most, of rows of SIZE values into the L2 cache."""
    LINES: tl.constexpr = min(64, triton.cdiv(SIZE * row_ptrs.dtype.element_ty.itemsize, LINE))
    line = tl.minimum(tl.arange(0, triton.next_power_of_2(LINES)), LINES - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [row_ptrs.to(tl.int64)[:, None] + line[None, :] * LINE],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def multiply_add(x, w, acc, W_FIRST: tl.constexpr):
    """acc + x w^T, or its transpose acc + w x^T."""
    if W_FIRST:
        return tl.dot(w, tl.trans(x), acc, input_precision="ieee")
    else:
        return tl.dot(x, tl.trans(w), acc, input_precision="ieee")


@triton.jit
def rounded_product(acc, bias_ptr, n, inside, out_ptr, W_FIRST: tl.constexpr):
    """[BLOCK_M, BLOCK_N], as float32 again."""
    y = tl.trans(acc) if W_FIRST else acc
    if bias_ptr is not None:
        y += tl.load(bias_ptr + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    return y.to(out_ptr.dtype.element_ty).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_rows,
    x_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    W_FIRST: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per BLOCK_M rows and BLOCK_N of the N columns of `out`."""
    start_next(PDL)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    is_row = m < num_rows
    inside = n < N
    w_ptrs = weight_ptr + tl.minimum(n, N - 1).to(tl.int64) * K
    if PDL:
        prefetch_rows(w_ptrs, K)
        if GATED:
            prefetch_rows(w_ptrs + N * K, K)
    wait_for_previous(PDL)
    x_ptrs = x_ptr + m.to(tl.int64) * x_stride
    if W_FIRST:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = acc
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        column = start + k[None, :]
        # Where BLOCK_K divides K, the compiler knows that this is always true.
        has_k = (K % BLOCK_K == 0) | (column < K)
        x = tl.load(x_ptrs[:, None] + column, mask=is_row[:, None] & has_k, other=0.0)
        w = tl.load(w_ptrs[:, None] + column, has_k, 0.0, eviction_policy="evict_first")
        acc = multiply_add(x, w, acc, W_FIRST)
        if GATED:
            w = tl.load(w_ptrs[:, None] + N * K + column, has_k, 0.0, eviction_policy="evict_first")
            up = multiply_add(x, w, up, W_FIRST)
    y = rounded_product(acc, bias_ptr, n, inside, out_ptr, W_FIRST)
    if GATED:
        if bias_ptr is not None:
            y = silu(y) * rounded_product(up, bias_ptr + N, n, inside, out_ptr, W_FIRST)
        else:
            y = silu(y) * rounded_product(up, None, n, inside, out_ptr, W_FIRST)
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    mask = is_row[:, None] & inside[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


class Tiles(NamedTuple):
    """How a product is cut. Bits do not depend on it."""

    block_m: int
    block_n: int
    block_k: int
    stages: int
    w_first: bool
    """The weights are the tensor cores' first operand; they have 16 rows at least, x has 8."""
    num_warps: int


def choose_tiles(num_rows: int, n: int, itemsize: int, *, gated: bool) -> Tiles:
    """For x [num_rows, K] and out [num_rows, n].

    A program has its weights on the way all at once where n is small, and there are programs enough
    for all multiprocessors to ask for some. Measured on an H100 and an H200.
    """
    if itemsize == 4:
        return Tiles(32, 32, 32, 3, False, 4)
    if n >= 65536:
        # Logits: programs come and go, and the outputs are a good part of what is moved.
        block_m = 16 if num_rows <= 16 else 32 if num_rows <= 32 else 64
        return Tiles(block_m, 64, 128, 5 if block_m == 16 else 4, block_m <= 32, 4)
    if num_rows <= 8:
        return Tiles(8, 16, 256, 3 if gated else 5, True, 1)
    if n <= 2048:
        return (
            Tiles(16, 16, 256, 5, False, 4) if num_rows <= 16 else Tiles(64, 16, 256, 4, False, 4)
        )
    if num_rows <= 16:
        return Tiles(16, 32, 256, 3, False, 4) if gated else Tiles(16, 64, 256, 4, True, 4)
    if num_rows <= 32:
        return Tiles(32, 64, 128, 4 if gated else 5, True, 4)
    return Tiles(64, 32 if gated else 64, 128, 4, not gated, 4)


_linear = Launcher(linear_kernel)


def launch_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    gated: bool = False,
) -> None:
    """x [M, K], any row stride; weight [N, K]; out, and residual, contiguous [M, N].

    If gated, weight and bias are of 2 N rows. `out` may be the residual itself.
    """
    num_rows, k = x.shape
    n = out.shape[1]
    tiles = choose_tiles(num_rows, n, x.itemsize, gated=gated)
    _linear(
        (triton.cdiv(n, tiles.block_n), triton.cdiv(num_rows, tiles.block_m), 1),
        (x, weight, bias, residual, out, num_rows, x.stride(0)),
        (n, k, gated, *tiles[:5]),
        tiles.num_warps,
    )
