"""Compiling ahead compiles and runs nothing; in the interpreter launches run as usual."""

import pytest
import torch
import triton
import triton.language as tl

from pagetwin.kernels.compile_ahead import compile_ahead


@triton.jit
def add_kernel(x_ptr, amount, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(x_ptr + place, tl.load(x_ptr + place) + amount)


def test_launches_within_run_only_where_kernels_are_interpreted(device: torch.device) -> None:
    x = torch.zeros(16, device=device)
    with compile_ahead():
        add_kernel[(1,)](x, 2.0, SIZE=16)
    expected = 2.0 if triton.knobs.runtime.interpret else 0.0
    assert x.tolist() == [expected] * 16


@pytest.mark.gpu
def test_kernels_are_there_afterwards(device: torch.device) -> None:
    x = torch.zeros(16, device=device)
    with compile_ahead():
        for size in (1, 2, 4, 8, 16):
            add_kernel[(1,)](x, 1.0, SIZE=size)
    compiled = []
    triton.knobs.runtime.jit_post_compile_hook = lambda **facts: compiled.append(facts)
    try:
        for size in (1, 2, 4, 8, 16):
            add_kernel[(1,)](x, 1.0, SIZE=size)
    finally:
        triton.knobs.runtime.jit_post_compile_hook = None
    assert compiled == []
    assert x.tolist()[:5] == [5.0, 4.0, 3.0, 3.0, 2.0]
