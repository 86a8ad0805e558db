"""What the mended interpreter must get right for the other tests to prove anything."""

import pytest
import torch
import triton
import triton.language as tl

from pagetwin.kernels.interpreter import OutOfBounds


@triton.jit
def cast_kernel(source_ptr, target_ptr, NUM: tl.constexpr):
    i = tl.arange(0, NUM)
    x = tl.load(source_ptr + i)
    tl.store(target_ptr + i, x.to(target_ptr.dtype.element_ty))


@triton.jit
def arithmetic_kernel(a_ptr, b_ptr, target_ptr, NUM: tl.constexpr):
    i = tl.arange(0, NUM)
    a, b = tl.load(a_ptr + i), tl.load(b_ptr + i, mask=i < NUM - 1, other=2.0)
    tl.store(target_ptr + i, tl.where(a < b, a * b, a - b))


@triton.jit
def dot_kernel(a_ptr, b_ptr, target_ptr, NUM: tl.constexpr):
    i = tl.arange(0, NUM)
    at = i[:, None] * NUM + i[None, :]
    tl.store(target_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 20


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn])
def test_casts_round_as_torch_rounds(device: torch.device, narrow: torch.dtype) -> None:
    source = draw(1024).to(device)
    target = torch.zeros(1024, dtype=narrow, device=device)
    cast_kernel[(1,)](source, target, NUM=1024)
    assert torch.equal(target.float(), source.to(narrow).float())
    back = torch.zeros_like(source)
    cast_kernel[(1,)](target, back, NUM=1024)
    assert torch.equal(back, target.float())


def test_bfloat16_arithmetic_is_that_of_torch(device: torch.device) -> None:
    a, b = draw(2, 256).to(device, torch.bfloat16)
    target = torch.zeros_like(a)
    arithmetic_kernel[(1,)](a, b, target, NUM=256)
    b[-1] = 2.0
    assert torch.equal(target, torch.where(a < b, a * b, a - b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_summed_in_float32(device: torch.device, dtype: torch.dtype) -> None:
    a, b = draw(2, 32, 32).to(device, dtype)
    target = torch.zeros(32, 32, device=device)
    dot_kernel[(1,)](a, b, target, NUM=32)
    torch.testing.assert_close(target, a.float() @ b.float(), rtol=1e-4, atol=1e-3)


def test_an_access_out_of_bounds_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU does not check")
    with pytest.raises(triton.runtime.errors.InterpreterError) as caught:
        cast_kernel[(1,)](torch.zeros(15), torch.zeros(16), NUM=16)
    assert OutOfBounds.__name__ in str(caught.value)
