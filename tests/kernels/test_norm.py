"""The normalisation kernels against their references in float64; a row's bits are its own."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from pagetwin.kernels import reference_layers as reference
from pagetwin.kernels.norm import (
    add_rms_norm,
    add_rms_norm_op,
    layer_norm,
    layer_norm_op,
    num_warps,
    rms_norm,
    rms_norm_kernel,
    rms_norm_op,
    row_scale,
    tree_sum,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [1, 7, 64, 128, 576, 1000, 4096]
EPS = 1e-5


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def roundoffs(dtype: torch.dtype, size: int) -> float:
    """Largest relative error of a root mean square of `size` values, and of 3 roundings to dtype.

    A running sum has size / 256 terms, the tree 8 more levels; all are positive, and the root
    halves the error (Higham 2002, 4.2). The device's reciprocal root is off by 2 roundoffs.
    """
    u, u_store = torch.finfo(torch.float32).eps / 2, torch.finfo(dtype).eps / 2
    return ((size / 256 + 12) / 2 + 4) * u + 3 * u_store


def assert_close(out: Tensor, exact: Tensor, bound: Tensor) -> None:
    # The smallest normal number: below it, float16 rounds coarsely.
    bound = bound + torch.finfo(out.dtype).tiny
    ratio = ((out.double() - exact).abs() / bound).max()
    assert ratio <= 1, f"error is {ratio} of its bound"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm_is_exact_within_its_roundings(
    device: torch.device, size: int, dtype: torch.dtype
) -> None:
    x = draw(3, size, dtype=dtype, device=device)
    x[1] *= 100
    weight = draw(size, dtype=dtype, device=device, seed=1)
    exact = reference.rms_norm(x.double(), weight.double(), EPS)
    out = rms_norm(x, weight, EPS)
    assert out.dtype == dtype
    assert_close(out, exact, roundoffs(dtype, size) * exact.abs())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [7, 576])
def test_add_rms_norm_is_an_addition_and_a_normalisation(
    device: torch.device, size: int, dtype: torch.dtype
) -> None:
    x, residual = draw(2, 3, size, dtype=dtype, device=device)
    weight = draw(size, dtype=dtype, device=device, seed=1)
    total = x + residual
    out = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, total)
    assert torch.equal(out, rms_norm(total, weight, EPS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_layer_norm_is_exact_within_its_roundings(
    device: torch.device, size: int, dtype: torch.dtype
) -> None:
    x = draw(3, size, dtype=dtype, device=device)
    x[1] += 3
    weight, bias = draw(2, size, dtype=dtype, device=device, seed=1)
    wide = x.double(), weight.double(), bias.double()
    exact = reference.layer_norm(*wide, EPS)
    # The mean is off by so many roundoffs of the mean magnitude, which the scale blows up.
    u = (size / 256 + 12) * torch.finfo(torch.float32).eps
    scale = (wide[0].var(-1, correction=0, keepdim=True) + EPS).rsqrt()
    shift = u * wide[0].abs().mean(-1, keepdim=True) * scale * wide[1].abs()
    magnitude = (exact - wide[2]).abs() + wide[2].abs()
    bound = roundoffs(dtype, size) * magnitude + 2 * shift
    # A variance near eps^2 times the mean's is all cancellation: rows of one value are 0 exactly.
    assert_close(layer_norm(x, weight, bias, EPS), exact, bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [576, 1024])
def test_a_row_has_the_same_bits_in_any_company(
    device: torch.device, size: int, dtype: torch.dtype
) -> None:
    x = draw(9, size, dtype=dtype, device=device)
    weight, bias = draw(2, size, dtype=dtype, device=device, seed=1)
    for norm, arguments in ((rms_norm, (weight, EPS)), (layer_norm, (weight, bias, EPS))):
        together = norm(x, *arguments)
        alone = [norm(x[i : i + 1], *arguments) for i in range(len(x))]
        assert torch.equal(together, torch.cat(alone))


@triton.jit
def sum_kernel(x_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr):
    row = tl.arange(0, M)
    x = tl.load(x_ptr + row[:, None] * N + tl.arange(0, N)[None, :])
    tl.store(out_ptr + row, tree_sum(x))


@triton.jit
def scale_kernel(x_ptr, out_ptr, num_rows, eps, M: tl.constexpr, SIZE: tl.constexpr):
    row = tl.arange(0, M)
    scale = row_scale(x_ptr + row * SIZE, row < num_rows, eps, SIZE)
    tl.store(out_ptr + row, scale)


@pytest.mark.parametrize("num_columns", [1, 2, 64, 256])
@pytest.mark.parametrize("warps", [1, 2, 4, 8])
def test_a_sum_is_the_same_tree_whatever_the_warps(
    device: torch.device, num_columns: int, warps: int
) -> None:
    x = draw(4, num_columns, dtype=torch.float32, device=device)
    tree = x
    while tree.shape[1] > 1:
        tree = tree[:, ::2] + tree[:, 1::2]
    out = torch.zeros(4, device=device)
    sum_kernel[(1,)](x, out, M=4, N=num_columns, num_warps=warps)
    assert torch.equal(out, tree[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 576])
def test_a_kernel_that_scales_rows_of_its_own_gets_the_bits_of_rms_norm(
    device: torch.device, size: int, dtype: torch.dtype
) -> None:
    x = draw(5, size, dtype=dtype, device=device)
    ones = torch.ones(size, dtype=dtype, device=device)
    expected = rms_norm(x, ones, EPS)
    for warps in (1, 2, 4, 8):
        scale = torch.full((16,), torch.nan, device=device)
        scale_kernel[(1,)](x, scale, 5, EPS, M=16, SIZE=size, num_warps=warps)
        assert torch.equal((x.float() * scale[:5, None]).to(dtype), expected)
        out = torch.empty_like(x)
        arguments = x, x, ones, out, EPS, size, 0, size
        rms_norm_kernel[(5,)](*arguments, SIZE=size, ADD=False, PDL=False, num_warps=warps)
        assert torch.equal(out, expected)


def test_rows_may_be_part_of_wider_ones_and_lie_far_apart(device: torch.device) -> None:
    wide = torch.full((3, 300), torch.nan, device=device)
    wide[:, 100:200] = draw(3, 100, dtype=torch.float32, device=device)
    x = wide[:, 100:200]
    weight = draw(100, dtype=torch.float32, device=device, seed=1)
    expected = rms_norm(x.contiguous(), weight, EPS)
    assert torch.equal(rms_norm(x, weight, EPS), expected)
    out = rms_norm(x, weight, EPS, out=x)
    assert out.data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)
    assert wide[:, :100].isnan().all()
    assert wide[:, 200:].isnan().all()


def test_no_rows_is_no_launch(device: torch.device) -> None:
    x, weight = torch.zeros(0, 64, device=device), torch.ones(64, device=device)
    assert rms_norm(x, weight, EPS).shape == (0, 64)
    assert add_rms_norm(x, x.clone(), weight, EPS).shape == (0, 64)
    assert layer_norm(x, weight, weight, EPS).shape == (0, 64)


def test_long_rows_are_spread_over_more_warps() -> None:
    assert [num_warps(size) for size in (1, 128, 1024, 4096, 16384)] == [1, 1, 1, 4, 16]


def test_the_operators_are_well_formed(device: torch.device) -> None:
    x = draw(3, 64, dtype=torch.float32, device=device)
    weight = torch.ones(64, device=device)
    for operator, arguments in (
        (rms_norm_op, (x, weight, EPS)),
        (add_rms_norm_op, (x, x.clone(), weight, EPS)),
        (layer_norm_op, (x, weight, weight, EPS)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
