"""A launcher finds the variant that Triton would find."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.pdl import start_next, wait_for_previous


class Recorder:
    """Stands in for a kernel: remembers how often it was asked to find a variant itself."""

    arg_names = ("x", "y", "n", "SIZE")

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> Any:
            self.asked.append(options)
            return Compiled(self)

        return launch


class Compiled:
    def __init__(self, kernel: Recorder) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args: self.kernel.launched.append((grid, *args))


def test_arguments_like_earlier_ones_are_launched_at_once() -> None:
    kernel = Recorder()
    launch = Launcher(kernel, num_stages=3)
    x, y, other = torch.zeros(3, 8)
    for n, third in ((3, x), (5, y), (7, other)):
        launch((n, 1, 1), (x, third, n), (64,), 2)
    assert kernel.asked == [{"num_warps": 2, "num_stages": 3}]
    assert [(grid, n, size) for grid, _, _, n, size in kernel.launched] == [
        ((5, 1, 1), 5, 64),
        ((7, 1, 1), 7, 64),
    ]


@pytest.mark.parametrize("number", [1, 16, 2**31, 0])
def test_integers_that_triton_treats_apart_are_kept_apart(number: int) -> None:
    kernel = Recorder()
    launch = Launcher(kernel)
    x = torch.zeros(8)
    for n in (3, number, 5):
        launch((1, 1, 1), (x, x, n), (64,))
    assert len(kernel.asked) == 2


def test_dtypes_alignments_constants_warps_and_missing_tensors_are_kept_apart() -> None:
    kernel = Recorder()
    launch = Launcher(kernel)
    x = torch.zeros(8)
    for second in (x, x[1:], x.half(), None, x[4:]):
        launch((1, 1, 1), (x, second, 3), (64,))
    launch((1, 1, 1), (x, x, 3), (32,))
    launch((1, 1, 1), (x, x, 3), (64,), 8)
    launch((1, 1, 1), (x, x, 3.0), (64,))
    assert len(kernel.asked) == 7


@dataclass
class Descriptor:
    """As Triton's TensorDescriptor, which has a version for each language."""

    base: torch.Tensor
    block_shape: list[int]
    layout: str = "swizzled"


def test_a_descriptor_is_known_by_its_dtype_its_block_and_its_layout() -> None:
    kernel = Recorder()
    launch = Launcher(kernel)
    x = torch.zeros(8, 8)
    for descriptor in (
        Descriptor(x, [4, 8]),
        Descriptor(x, [8, 4]),
        Descriptor(x.half(), [4, 8]),
        Descriptor(x, [4, 8], "plain"),
        Descriptor(torch.ones(16, 8), [4, 8]),
    ):
        launch((1, 1, 1), (descriptor, x, 3), (64,))
    assert len(kernel.asked) == 4


@triton.jit
def scale_kernel(x_ptr, n, factor, SIZE: tl.constexpr, PDL: tl.constexpr):
    start_next(PDL)
    wait_for_previous(PDL)
    i = tl.arange(0, SIZE)
    tl.store(x_ptr + i, tl.load(x_ptr + i, mask=i < n) * factor, mask=i < n)


def test_a_kernel_computes_the_same_however_it_is_found(device: torch.device) -> None:
    launch = Launcher(scale_kernel)
    memory = torch.ones(64, device=device)
    for _ in range(2):
        for x, n in ((memory, 16), (memory[1:], 16), (memory[32:], 1), (memory, 5)):
            launch((1, 1, 1), (x, n, 2.0), (32,))
    assert memory[:17].tolist() == [16, 64, 64, 64, 64] + [16] * 11 + [4]
    assert memory[32] == 4
