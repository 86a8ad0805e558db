"""The gated activation kernels against float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from pagetwin.kernels import reference_layers as reference
from pagetwin.kernels.activation import (
    gelu_and_mul,
    gelu_and_mul_op,
    silu_and_mul,
    silu_and_mul_op,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Gated = Callable[[Tensor], Tensor]
KERNELS: dict[str, tuple[Gated, Gated]] = {
    "silu": (silu_and_mul, reference.silu_and_mul),
    "gelu": (gelu_and_mul, reference.gelu_and_mul),
    "gelu_tanh": (
        partial(gelu_and_mul, approximate="tanh"),
        partial(reference.gelu_and_mul, approximate="tanh"),
    ),
}


def draw(rows: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (4 * torch.randn(rows, 2 * size, generator=generator)).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 576, 3000])
@pytest.mark.parametrize("name", KERNELS)
def test_is_the_activation_times_the_rest_within_its_roundings(
    device: torch.device, name: str, size: int, dtype: torch.dtype
) -> None:
    kernel, plain = KERNELS[name]
    gate_up = draw(3, size, dtype, device)
    wide = gate_up.double()
    gate, up = wide.chunk(2, dim=-1)
    exact = plain(wide)
    u, u_store = torch.finfo(torch.float32).eps / 2, torch.finfo(dtype).eps / 2
    # An exponential is off by the rounding of its argument and by 2 units of its own; the argument
    # of gelu's is a cubic. 1 + erf, here, and 1 + tanh, in torch, cancel where x is negative.
    argument = 2 * gate.abs() + 0.15 * gate.abs() ** 3
    bound = (u_store + (8 + 4 * argument) * u) * exact.abs()
    bound += 4 * (u if name == "gelu" else 2**-53) * (gate * up).abs()
    out = kernel(gate_up)
    assert out.dtype == dtype
    ratio = ((out.double() - exact).abs() / (bound + torch.finfo(dtype).tiny)).max()
    assert ratio <= 1, f"error is {ratio} of its bound"


@pytest.mark.parametrize("name", KERNELS)
def test_large_arguments_stay_finite(device: torch.device, name: str) -> None:
    kernel, _ = KERNELS[name]
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]], device=device)
    out = kernel(torch.cat((gate, torch.ones_like(gate)), dim=-1))
    assert torch.equal(out[0, 2:], gate[0, 2:])
    assert out[0, :2].abs().max() < 1e-30


def test_rows_may_be_part_of_wider_ones(device: torch.device) -> None:
    wide = torch.full((3, 300), torch.nan, device=device)
    wide[:, 40:240] = draw(3, 100, torch.float32, device)
    part = wide[:, 40:240]
    assert torch.equal(silu_and_mul(part), silu_and_mul(part.contiguous()))


def test_no_rows_is_no_launch(device: torch.device) -> None:
    assert silu_and_mul(torch.zeros(0, 64, device=device)).shape == (0, 32)


def test_the_operators_are_well_formed(device: torch.device) -> None:
    gate_up = draw(2, 32, torch.float32, device)
    for operator in (silu_and_mul_op, gelu_and_mul_op):
        torch.library.opcheck(operator, (gate_up,), test_utils=("test_schema", "test_faketensor"))
