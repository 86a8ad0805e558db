"""Products of a few rows with a weight on Hopper GPUs (compute capability 9.0), in Gluon.

Such a product is a read of the weight, and a step of a model is a chain of them, each too short to
get the memory going before it ends. So a program asks for its weights before it waits for the
kernel that makes its rows (kernels/pdl.py), all of them if they fit, and the memory is never idle.
Each warp has 8 columns of the output: its sums, one product of the tensor cores after the other,
take about as long as the read.

The arithmetic is that of linear_tiles, to the bit, and rows that are to be normalised first are
what rms_norm makes of them.
"""

from functools import cache
from typing import NamedTuple

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.norm import LANES, appended
from pagetwin.kernels.pdl import start_next, wait_for_previous

DEPTH = gl.constexpr(LANES)
"""Values of a row that are copied and multiplied at a time, and summed in lanes side by side."""


@gluon.constexpr_function
def _copy_layout(num_warps):
    """[any, DEPTH], a row per warp, 16 bytes of two-byte values per thread."""
    return gl.BlockedLayout([1, 8], [1, 32], [num_warps, 1], [1, 0])


@gluon.jit
def _tree_sum(x):
    """As norm.tree_sum."""
    M: gl.constexpr = x.shape[0]
    N: gl.constexpr = x.shape[1]
    if N == 1:
        return gl.reshape(x, [M])
    else:
        return _tree_sum(gl.sum(gl.reshape(x, [M, N // 2, 2]), 2))


@gluon.jit
def silu(x):
    """As activation.silu."""
    small = gl.exp(-gl.abs(x))
    return gl.where(x >= 0, x, x * small) / (1.0 + small)


@gluon.jit
def _copy_weights(ptrs, smem, step, STEPS: gl.constexpr):
    """Ask for the step's weights, of which there are none from STEPS on."""
    LAYOUT: gl.constexpr = ptrs.type.layout
    inside = gl.full(ptrs.shape, True, gl.int1, LAYOUT) & (step < STEPS)
    async_copy.async_copy_global_to_shared(
        smem, ptrs + step * DEPTH, mask=inside, eviction_policy="evict_first"
    )
    async_copy.commit_group()


@gluon.jit
def _squares(x_ptrs, is_row, STEPS: gl.constexpr):
    LAYOUT: gl.constexpr = x_ptrs.type.layout
    squares = gl.zeros(x_ptrs.shape, gl.float32, LAYOUT)
    for step in range(STEPS):
        x = gl.load(x_ptrs + step * DEPTH, mask=is_row, other=0.0).to(gl.float32)
        squares = gl.fma(x, x, squares)
    return squares


@gluon.jit
def _store_normalised(x_ptrs, is_row, weight_smem, eps, x_smem, STEPS: gl.constexpr):
    """rms_norm of the rows to shared memory; rows that are none become 0."""
    LAYOUT: gl.constexpr = x_ptrs.type.layout
    mean = _tree_sum(_squares(x_ptrs, is_row, STEPS))
    scale = gl.rsqrt(gl.fma(mean, 1.0 / (STEPS * DEPTH), eps))
    scale = gl.convert_layout(scale, gl.SliceLayout(1, LAYOUT))[:, None]
    for step in range(STEPS):
        x = gl.load(x_ptrs + step * DEPTH, mask=is_row, other=0.0)
        weight = weight_smem.index(step).load(LAYOUT)
        x_smem.index(step).store((x.to(gl.float32) * scale).to(x.dtype) * weight)


@gluon.jit
def _store(x_ptrs, is_row, x_smem, STEPS: gl.constexpr):
    values = ()
    for step in gl.static_range(STEPS):
        values = appended(values, gl.load(x_ptrs + step * DEPTH, mask=is_row, other=0.0))
    for step in gl.static_range(STEPS):
        x_smem.index(step).store(values[step])


@gluon.jit
def _copy(x_ptrs, is_row, x_smem, STEPS: gl.constexpr):
    """As _store, for rows too many for the registers; all copies asked for have come then."""
    for step in range(STEPS):
        async_copy.async_copy_global_to_shared(
            x_smem.index(step), x_ptrs + step * DEPTH, mask=is_row
        )
    async_copy.commit_group()
    async_copy.wait_group(0)


@gluon.jit(do_not_specialize=["num_rows"])
def linear_hopper_kernel(
    x_ptr,
    norm_weight_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_rows,
    x_stride,
    eps,
    N: gl.constexpr,
    K: gl.constexpr,
    GATED: gl.constexpr,
    ROWS: gl.constexpr,
    SLOTS: gl.constexpr,
    PDL: gl.constexpr,
):
    """One program per ROWS rows and 8 columns of `out` per warp."""
    start_next(PDL)
    WARPS: gl.constexpr = gl.num_warps()
    COLUMNS: gl.constexpr = 8 * WARPS
    WEIGHTS: gl.constexpr = 2 * COLUMNS if GATED else COLUMNS
    STEPS: gl.constexpr = K // DEPTH
    IS_RING: gl.constexpr = SLOTS < STEPS
    # One slot of a ring is being read.
    AHEAD: gl.constexpr = SLOTS - 1 if IS_RING else STEPS
    COPY: gl.constexpr = _copy_layout(WARPS)
    SMEM: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    PRODUCT: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [1, WARPS], [16, 8])
    X: gl.constexpr = gl.DotOperandLayout(0, PRODUCT, 2)
    W: gl.constexpr = gl.DotOperandLayout(1, PRODUCT, 2)
    dtype: gl.constexpr = weight_ptr.dtype.element_ty
    w_smem = gl.allocate_shared_memory(dtype, [min(SLOTS, STEPS), WEIGHTS, DEPTH], SMEM)
    x_smem = gl.allocate_shared_memory(dtype, [STEPS, ROWS, DEPTH], SMEM)

    first = gl.program_id(0) * COLUMNS
    copied = gl.arange(0, WEIGHTS, gl.SliceLayout(1, COPY))
    copied = gl.where(copied < COLUMNS, first + copied, N + first + copied - COLUMNS)
    lane = gl.arange(0, DEPTH, gl.SliceLayout(0, COPY))
    if norm_weight_ptr is not None:
        norm_smem = gl.allocate_shared_memory(dtype, [STEPS, 1, DEPTH], SMEM)
        norm_ptrs = norm_weight_ptr + lane[None, :]
        for step in gl.static_range(STEPS):
            async_copy.async_copy_global_to_shared(norm_smem.index(step), norm_ptrs + step * DEPTH)
        async_copy.commit_group()
    w_ptrs = weight_ptr + copied.to(gl.int64)[:, None] * K + lane[None, :]
    for step in gl.static_range(AHEAD):
        _copy_weights(w_ptrs, w_smem.index(step), step, STEPS)
    n = first + gl.arange(0, COLUMNS, gl.SliceLayout(0, PRODUCT))
    if bias_ptr is not None:
        bias = gl.load(bias_ptr + n)
        if GATED:
            up_bias = gl.load(bias_ptr + N + n)
    wait_for_previous(PDL)

    row = gl.program_id(1) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, COPY))
    x_ptrs = x_ptr + row.to(gl.int64)[:, None] * x_stride + lane[None, :]
    m = gl.program_id(1) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, PRODUCT))
    at = m.to(gl.int64)[:, None] * N + n[None, :]
    is_row = (m < num_rows)[:, None]
    if residual_ptr is not None:
        residual = gl.load(residual_ptr + at, mask=is_row, other=0.0)
    is_x = (row < num_rows)[:, None]
    if norm_weight_ptr is not None:
        async_copy.wait_group(AHEAD)
        _store_normalised(x_ptrs, is_x, norm_smem, eps, x_smem, STEPS)
    elif ROWS * STEPS <= 16 * WARPS:
        _store(x_ptrs, is_x, x_smem, STEPS)
    else:
        _copy(x_ptrs, is_x, x_smem, STEPS)

    acc = gl.zeros([ROWS, COLUMNS], gl.float32, PRODUCT)
    up = acc
    for step in range(STEPS):
        async_copy.wait_group(AHEAD - 1)
        slot = step % SLOTS if IS_RING else step
        if IS_RING:
            ahead = step + AHEAD
            _copy_weights(w_ptrs, w_smem.index(ahead % SLOTS), ahead, STEPS)
        else:
            async_copy.commit_group()
        x = x_smem.index(step).load(X)
        w = w_smem.index(slot)
        acc = mma_v2(x, w.slice(0, COLUMNS).permute((1, 0)).load(W), acc)
        if GATED:
            up = mma_v2(x, w.slice(COLUMNS, COLUMNS).permute((1, 0)).load(W), up)
    if bias_ptr is not None:
        acc += bias.to(gl.float32)[None, :]
    y = acc.to(out_ptr.dtype.element_ty).to(gl.float32)
    if GATED:
        if bias_ptr is not None:
            up += up_bias.to(gl.float32)[None, :]
        y = silu(y) * up.to(out_ptr.dtype.element_ty).to(gl.float32)
    if residual_ptr is not None:
        y += residual.to(gl.float32)
    gl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=is_row)


_SHARED_BYTES = 227 * 1024


class Cut(NamedTuple):
    """How a product is cut. Bits do not depend on it."""

    rows: int
    slots: int
    """Pieces of a row of weights that are in memory at once, each of LANES values."""
    num_warps: int


@cache
def choose_cut(num_rows: int, n: int, k: int, *, gated: bool) -> Cut | None:
    """For x [num_rows, K] and out [num_rows, n]; None if the kernel has no such product."""
    rows = triton.next_power_of_2(num_rows)
    if rows > 16 or k % LANES:
        return None
    # A program has at most so many weights on their way that others fit beside it; where its rows
    # leave no room for others, it has more warps.
    warps = 1
    if gated or n >= 4096:
        warps = 4 if gated or n >= 65536 or rows * k * 2 > _SHARED_BYTES // 3 else 2
    if n % (8 * warps):
        return None
    slot_bytes = (2 if gated else 1) * 8 * warps * LANES * 2
    slots = min(max(3, (64 if warps == 4 else 48) * 1024 // slot_bytes), k // LANES)
    if slots * slot_bytes + (rows + 1) * k * 2 > _SHARED_BYTES:
        return None
    return Cut(rows, slots, warps)


_linear = Launcher(linear_hopper_kernel)


def launch_linear_hopper(
    x: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    cut: Cut,
    *,
    gated: bool = False,
) -> None:
    """As linear_tiles.launch_linear, of rms_norm(x) if there is a weight for that.

    The rows of x begin at multiples of 16 bytes and lie multiples of 32 apart.
    """
    num_rows, k = x.shape
    n = out.shape[1]
    _linear(
        (n // (8 * cut.num_warps), triton.cdiv(num_rows, cut.rows), 1),
        (x, norm_weight, weight, bias, residual, out, num_rows, x.stride(0), eps),
        (n, k, gated, cut.rows, cut.slots),
        cut.num_warps,
    )
