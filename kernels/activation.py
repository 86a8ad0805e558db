"""Gated activations: act(first half) times second half (Triton; reference_layers).

Products are computed in float32 and rounded once. `silu` and its relatives are for other kernels
too: one that ends in them has the bits of this one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.pdl import start_next, wait_for_previous

TILE = 1024


@triton.jit
def times_logistic(x, z):
    """x / (1 + exp(-z)), float32, by an exponential that cannot overflow."""
    small = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, x, x * small) / (1.0 + small)


@triton.jit
def silu(x):
    """x times the logistic function of x, float32."""
    return times_logistic(x, x)


@triton.jit
def gelu(x):
    """x times the normal distribution function of x, float32 (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    """The approximation of gelu by tanh, float32; (1 + tanh(z)) / 2 is the logistic of 2z."""
    twice_sqrt_2_over_pi = 1.5957691216057308
    return times_logistic(x, twice_sqrt_2_over_pi * x * tl.fma(0.044715 * x, x, 1.0))


@triton.jit
def act_and_mul_kernel(
    gate_up_ptr,
    out_ptr,
    row_stride,
    SIZE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per row and TILE columns."""
    start_next(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < SIZE
    gate = tl.load(gate_up_ptr + row * row_stride + column, mask=inside).to(tl.float32)
    up = tl.load(gate_up_ptr + row * row_stride + SIZE + column, mask=inside).to(tl.float32)
    if ACTIVATION == "silu":
        y = silu(gate) * up
    elif ACTIVATION == "gelu":
        y = gelu(gate) * up
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh")
        y = gelu_tanh(gate) * up
    tl.store(out_ptr + row * SIZE + column, y.to(out_ptr.dtype.element_ty), mask=inside)


_act_and_mul = Launcher(act_and_mul_kernel)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """As reference_layers.silu_and_mul: rows gate_up [T, 2 I] of any stride, to [T, I]."""
    return _launch(gate_up, "silu")


def gelu_and_mul(gate_up: Tensor, approximate: str = "none") -> Tensor:
    """Likewise with gelu, exact or by "tanh"."""
    return _launch(gate_up, "gelu_tanh" if approximate == "tanh" else "gelu")


def _launch(gate_up: Tensor, activation: str) -> Tensor:
    num_rows, width = gate_up.shape
    size = width // 2
    out = torch.empty((num_rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if num_rows:
        _act_and_mul(
            (num_rows, triton.cdiv(size, TILE), 1),
            (gate_up, out, gate_up.stride(0)),
            (size, activation, TILE),
        )
    return out


silu_and_mul_op = torch.library.custom_op("pagetwin::silu_and_mul", silu_and_mul, mutates_args=())
gelu_and_mul_op = torch.library.custom_op("pagetwin::gelu_and_mul", gelu_and_mul, mutates_args=())
silu_and_mul_op.register_fake(lambda x: x.new_empty(len(x), x.shape[1] // 2))
gelu_and_mul_op.register_fake(lambda x, approximate="none": x.new_empty(len(x), x.shape[1] // 2))
