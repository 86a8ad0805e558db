"""Products with a model's weights, and what stands around them in a layer.

A row's bits depend on its values alone, whatever the number of rows: few rows are multiplied by
kernels of ours that do in one launch what stands around the product, many by cuBLAS, and both add
products in the same order as long as cuBLAS does not split K (no_split_k). So which of them does
it is a question of time alone. float32 is ours alone. On Hopper one kernel of ours makes gates and
ups of many rows, too, and what becomes of them (gated_hopper).

x is [M, K] with any row stride; weights are [N, K], contiguous. Nothing here waits for the device.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pagetwin.kernels.activation import silu_and_mul
from pagetwin.kernels.device import capability, gluon_kernels, num_multiprocessors
from pagetwin.kernels.linear_tiles import launch_linear
from pagetwin.kernels.norm import rms_norm

LARGE = 2**24
"""Numbers of a weight that takes long enough to read for cuBLAS to start up meanwhile."""
MAX_FUSED_NORM_ROWS = 8
"""Rows that programs normalise each for itself faster than a kernel does it for all of them."""
MAX_STREAMED_ROWS = 16
"""Rows of small weights that linear_hopper multiplies with gates faster than gated_hopper does."""


@cache
def most_rows(n: int, k: int) -> int:
    """The most rows that a weight [n, k] is multiplied with by kernels of ours.

    Where the one or the other is faster, on an H200. Of long sums for few outputs
    there is more to it: for some numbers of rows cuBLAS wants to split K and, not allowed to,
    takes ten times as long (n = 1024, k = 3072: 76 us instead of 8 for 96 rows, but not for 80).
    """
    if n * k < LARGE:
        return 64 if n > k else 128
    return 1 if n > k else 16


def uses_cublas(x: Tensor, weight: Tensor) -> bool:
    is_ours = not x.is_cuda or x.dtype == torch.float32
    return not is_ours and len(x) > most_rows(*weight.shape)


@contextmanager
def no_split_k() -> Iterator[None]:
    """cuBLAS adds the products of an output in one chain, here and in graphs captured here.

    Left to itself it splits long sums over few rows into parts, and so rows would differ with
    their number. The process's settings are restored at the end.
    """
    if not torch.cuda.is_available():
        yield
        return
    matmul = torch.backends.cuda.matmul
    names = [f"allow_{name}_reduced_precision_reduction" for name in ("bf16", "fp16")]
    old = {name: (getattr(matmul, name), getattr(matmul, f"{name}_split_k")) for name in names}
    library = _blas_library(None)
    # Only cublasLt can be told.
    _blas_library("cublaslt")
    for name in names:
        setattr(matmul, name, (False, False))
    try:
        yield
    finally:
        for name, values in old.items():
            setattr(matmul, name, values)
        _blas_library(library)


def _blas_library(preferred: Any) -> Any:
    with warnings.catch_warnings():
        # "An experimental feature".
        warnings.simplefilter("ignore")
        return torch.backends.cuda.preferred_blas_library(preferred)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """x W^T + bias, rounded once: [M, N], in x's dtype, or into a contiguous `out` of float32."""
    num_rows, n = len(x), len(weight)
    if uses_cublas(x, weight):
        if out is None:
            return F.linear(x, weight, bias)
        assert bias is None
        return torch.mm(x, weight.T, out_dtype=out.dtype, out=out)
    if out is None:
        out = torch.empty((num_rows, n), dtype=x.dtype, device=x.device)
    _multiply_few(x, None, 0.0, weight, bias, None, out)
    return out


def norm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """linear of rms_norm(x): [M, N]."""
    if uses_cublas(x, weight):
        return F.linear(rms_norm(x, norm_weight, eps), weight, bias)
    out = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
    _multiply_few(x, norm_weight, eps, weight, bias, None, out)
    return out


def linear_add(x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """Add linear(x) to `residual` [M, N] in place: rounded, added, rounded again (as in HF)."""
    if uses_cublas(x, weight):
        if bias is not None:
            return residual.add_(F.linear(x, weight, bias))
        # cuBLAS rounds the product before it adds the residual.
        return residual.addmm_(x, weight.T)
    _multiply_few(x, None, 0.0, weight, bias, residual, residual)
    return residual


def norm_gated_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """silu_and_mul of norm_linear, whose outputs are N / 2 gates and as many ups: [M, N / 2]."""
    is_cublas = uses_cublas(x, weight)
    if bias is None and (is_cublas or len(x) > MAX_STREAMED_ROWS):
        gated = _norm_gated_hopper(x, norm_weight, eps, weight)
        if gated is not None:
            return gated
    if is_cublas:
        return silu_and_mul(F.linear(rms_norm(x, norm_weight, eps), weight, bias))
    out = torch.empty((len(x), len(weight) // 2), dtype=x.dtype, device=x.device)
    _multiply_few(x, norm_weight, eps, weight, bias, None, out, gated=True)
    return out


def _norm_gated_hopper(x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor) -> Tensor | None:
    """norm_gated_linear by gated_hopper; None where that is not to be had, or not faster."""
    hopper = _gated_hopper(x.device)
    if not hopper or x.itemsize != 2:
        return None
    num_rows, n, k = len(x), len(weight) // 2, x.shape[1]
    tile = hopper.choose_tile(num_rows, n, k, num_multiprocessors(x.device))
    if tile is None:
        return None
    out = torch.empty((num_rows, n), dtype=x.dtype, device=x.device)
    hopper.launch_gated_hopper(rms_norm(x, norm_weight, eps), weight, out, tile)
    return out


def _multiply_few(
    x: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    gated: bool = False,
) -> None:
    """Into `out`, which may be `residual`; of rms_norm(x) if there is a weight for that."""
    if not len(x):
        return
    if norm_weight is not None and len(x) > MAX_FUSED_NORM_ROWS:
        x, norm_weight = rms_norm(x, norm_weight, eps), None
    if hopper := _linear_hopper(x.device):
        cut = hopper.choose_cut(len(x), out.shape[1], x.shape[1], gated=gated)
        if cut and x.itemsize == 2 and x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0:
            hopper.launch_linear_hopper(
                x, norm_weight, eps, weight, bias, residual, out, cut, gated=gated
            )
            return
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps)
    launch_linear(x, weight, bias, residual, out, gated=gated)


def _linear_hopper(device: torch.device) -> ModuleType | None:
    return _kernels("linear_hopper") if capability(device) >= 90 else None


def _gated_hopper(device: torch.device) -> ModuleType | None:
    return _kernels("gated_hopper") if capability(device) == 90 else None


def _kernels(name: str) -> ModuleType | None:
    kernels = gluon_kernels(name)
    return None if isinstance(kernels, str) else kernels


@torch.library.custom_op("pagetwin::linear", mutates_args=())
def linear_op(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return linear(x, weight, bias)


linear_op.register_fake(lambda x, weight, bias=None: x.new_empty(len(x), len(weight)))
norm_linear_op = torch.library.custom_op("pagetwin::norm_linear", norm_linear, mutates_args=())
norm_linear_op.register_fake(
    lambda x, norm_weight, eps, weight, bias=None: x.new_empty(len(x), len(weight))
)
norm_gated_linear_op = torch.library.custom_op(
    "pagetwin::norm_gated_linear", norm_gated_linear, mutates_args=()
)
norm_gated_linear_op.register_fake(
    lambda x, norm_weight, eps, weight, bias=None: x.new_empty(len(x), len(weight) // 2)
)


@torch.library.custom_op("pagetwin::linear_add", mutates_args={"residual"})
def linear_add_op(x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None = None) -> None:
    linear_add(x, weight, residual, bias)


linear_add_op.register_fake(lambda x, weight, residual, bias=None: None)
