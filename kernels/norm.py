"""Root-mean-square and layer normalisation of rows (Triton; reference_layers).

A row's bits depend on its values alone: sums over a row are made of LANES running sums, each over
every LANES-th value in ascending order, which a fixed tree then adds up (tree_sum). Neither the
number of rows, nor of warps, nor the kernel that does it can show, so a kernel that normalises what
it multiplies (row_scale) rounds as rms_norm does.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.pdl import start_next, wait_for_previous

LANES = 256
"""Running sums per row. Part of what the results are: another number gives other bits."""


@triton.constexpr_function
def num_lanes(size):
    """LANES, or fewer where a row is shorter: the lanes that stay 0 would change nothing."""
    return min(LANES, triton.next_power_of_2(size))


@triton.jit
def tree_sum(x):
    """[M, N], N a power of two, to [M]: neighbours are added, then neighbouring pairs, ...

    Single additions, each of them spelled out: tl.sum adds in an order of its own, which follows
    from the number of warps and from the layout that the compiler gave x.
    """
    M: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1]
    if N == 1:
        return tl.reshape(x, [M])
    else:
        return tree_sum(tl.sum(tl.reshape(x, [M, N // 2, 2]), axis=2))


@triton.jit
def scale_of_squares(squares, eps, SIZE: tl.constexpr):
    """1 / sqrt(mean + eps) [M], from running sums of squares [M, lanes] over rows of SIZE."""
    # An fma, as for the squares: left to the compiler, it may be fused in one kernel but not in
    # another.
    return tl.rsqrt(tl.fma(tree_sum(squares), 1.0 / SIZE, eps))


@triton.jit
def row_scale(row_ptrs, is_row, eps, SIZE: tl.constexpr):
    """What rms_norm multiplies rows of SIZE by: float32 [M].

    row_ptrs [M] points at the rows, is_row [M] says which of them may be read; others give
    1 / sqrt(eps).
    """
    WIDTH: tl.constexpr = num_lanes(SIZE)
    lane = tl.arange(0, WIDTH)[None, :]
    squares = tl.zeros([row_ptrs.shape[0], WIDTH], tl.float32)
    for start in tl.static_range(0, SIZE, WIDTH):
        inside = is_row[:, None] & (start + lane < SIZE)
        x = tl.load(row_ptrs[:, None] + start + lane, mask=inside, other=0.0).to(tl.float32)
        squares = tl.fma(x, x, squares)
    return scale_of_squares(squares, eps, SIZE)


@triton.jit
def appended(values, x):
    return values + (x,)  # noqa: RUF005, Triton knows no stars


@triton.jit
def normalised(x, scale, weight):
    """x * scale, rounded to the dtype of `weight`, times the weight, rounded again (as in HF)."""
    return (x.to(tl.float32) * scale).to(weight.dtype) * weight


@triton.jit
def rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    eps,
    x_stride,
    residual_stride,
    out_stride,
    SIZE: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per row. ADD: residual += x comes first, and the sum is what is normalised."""
    start_next(PDL)
    row = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = num_lanes(SIZE)
    lane = tl.arange(0, WIDTH)[None, :]
    squares = tl.zeros([1, WIDTH], tl.float32)
    # All is read before anything is written: later, the compiler would wait for each store.
    values, weights = (), ()
    for start in tl.static_range(0, SIZE, WIDTH):
        column = start + lane
        weights = appended(weights, tl.load(weight_ptr + column, mask=column < SIZE))
    wait_for_previous(PDL)
    for start in tl.static_range(0, SIZE, WIDTH):
        column = start + lane
        inside = column < SIZE
        x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
        if ADD:
            x += tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0)
        values = appended(values, x)
    for i in tl.static_range(len(values)):
        x = values[i].to(tl.float32)
        squares = tl.fma(x, x, squares)
    scale = scale_of_squares(squares, eps, SIZE)[:, None]
    for i in tl.static_range(len(values)):
        column = i * WIDTH + lane
        inside = column < SIZE
        if ADD:
            tl.store(residual_ptr + row * residual_stride + column, values[i], mask=inside)
        y = normalised(values[i], scale, weights[i])
        tl.store(out_ptr + row * out_stride + column, y, mask=inside)


@triton.jit
def layer_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    eps,
    x_stride,
    out_stride,
    SIZE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per row."""
    start_next(PDL)
    row = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = num_lanes(SIZE)
    lane = tl.arange(0, WIDTH)[None, :]
    sums = tl.zeros([1, WIDTH], tl.float32)
    squares = tl.zeros([1, WIDTH], tl.float32)
    values, weights, biases = (), (), ()
    for start in tl.static_range(0, SIZE, WIDTH):
        inside = start + lane < SIZE
        weights = appended(weights, tl.load(weight_ptr + start + lane, mask=inside))
        biases = appended(biases, tl.load(bias_ptr + start + lane, mask=inside))
    wait_for_previous(PDL)
    for start in tl.static_range(0, SIZE, WIDTH):
        inside = start + lane < SIZE
        x = tl.load(x_ptr + row * x_stride + start + lane, mask=inside, other=0.0)
        values = appended(values, x.to(tl.float32))
    for i in tl.static_range(len(values)):
        sums += values[i]
    mean = tree_sum(sums)[:, None] / SIZE
    for i in tl.static_range(len(values)):
        deviation = tl.where(i * WIDTH + lane < SIZE, values[i] - mean, 0.0)
        squares = tl.fma(deviation, deviation, squares)
    scale = scale_of_squares(squares, eps, SIZE)[:, None]
    for i in tl.static_range(len(values)):
        column = i * WIDTH + lane
        y = tl.fma((values[i] - mean) * scale, weights[i].to(tl.float32), biases[i].to(tl.float32))
        tl.store(out_ptr + row * out_stride + column, y.to(x.dtype), mask=column < SIZE)


_rms_norm = Launcher(rms_norm_kernel)
_layer_norm = Launcher(layer_norm_kernel)


def num_warps(size: int) -> int:
    """Each thread holds its part of a row in registers: some 64 values, or 16 bytes at least."""
    return max(1, min(16, int(triton.next_power_of_2(size)) // 1024))


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """As reference_layers.rms_norm: rows x [T, H] of any stride, weight [H], to [T, H].

    `out` may be x itself.
    """
    num_rows, size = x.shape
    if out is None:
        out = torch.empty((num_rows, size), dtype=x.dtype, device=x.device)
    if num_rows:
        _rms_norm(
            (num_rows, 1, 1),
            (x, x, weight, out, eps, x.stride(0), 0, out.stride(0)),
            (size, False),
            num_warps(size),
        )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add x [T, H] to `residual` in place, rounded to its dtype; the sum's rms_norm."""
    num_rows, size = x.shape
    out = torch.empty((num_rows, size), dtype=x.dtype, device=x.device)
    if num_rows:
        _rms_norm(
            (num_rows, 1, 1),
            (x, residual, weight, out, eps, x.stride(0), residual.stride(0), size),
            (size, True),
            num_warps(size),
        )
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As reference_layers.layer_norm: rows x [T, H] of any stride, weight and bias [H]."""
    num_rows, size = x.shape
    out = torch.empty((num_rows, size), dtype=x.dtype, device=x.device)
    if num_rows:
        _layer_norm(
            (num_rows, 1, 1),
            (x, weight, bias, out, eps, x.stride(0), size),
            (size,),
            num_warps(size),
        )
    return out


@torch.library.custom_op("pagetwin::rms_norm", mutates_args=())
def rms_norm_op(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x, weight, eps)


rms_norm_op.register_fake(lambda x, weight, eps: x.new_empty(x.shape))
add_rms_norm_op = torch.library.custom_op(
    "pagetwin::add_rms_norm", add_rms_norm, mutates_args={"residual"}
)
add_rms_norm_op.register_fake(lambda x, residual, weight, eps: x.new_empty(x.shape))
layer_norm_op = torch.library.custom_op("pagetwin::layer_norm", layer_norm, mutates_args=())
layer_norm_op.register_fake(lambda x, weight, bias, eps: x.new_empty(x.shape))
