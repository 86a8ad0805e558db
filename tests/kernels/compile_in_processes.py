"""Compiles small kernels ahead for a GPU that is not there; prints what came from disk, as JSON.

Run by test_compile_processes.py in a process of its own, as test_compiles.py runs compile_variants:
a failing compiler may take its process along, and the driver here is made up. The one argument is
what happens in the copies: "work", "die", or "hang".
"""

import json
import os
import sys
import time
import warnings
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.runtime import driver

from pagetwin.kernels import compile_ahead as ahead
from pagetwin.kernels import forked

SIZES = (16, 32, 64)


@triton.jit(do_not_specialize=["stride"])
def add_kernel(x_ptr, bias_ptr, amount, stride, SIZE: tl.constexpr, HOW: tl.constexpr):
    place = tl.arange(0, SIZE)
    value = tl.load(x_ptr + place) + amount
    if bias_ptr is not None:
        value += tl.load(bias_ptr + place * stride)
    tl.store(x_ptr + place, -value if HOW == "negated" else value)


@gluon.jit
def copy_kernel(x_ptr, out_ptr, SIZE: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    place = gl.arange(0, SIZE, layout)
    gl.store(out_ptr + place, gl.load(x_ptr + place))


class HopperWithoutDriver:
    """As much of a driver as compiling asks for."""

    def __init__(self) -> None:
        self.launchers: list[tuple[str, ...]] = []

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, src: Any, metadata: Any) -> None:
        self.launchers.append(tuple(map(str, src.signature.values())))


def launch_all() -> None:
    """Pointers, floats, integers of each kind, constants that are numbers, words and None."""
    x, other = torch.zeros(64), torch.zeros(64)
    for size in SIZES:
        add_kernel[(1,)](x, None, 2.0, 7, SIZE=size, HOW="plain", num_warps=2)
        add_kernel[(1,)](x, other, 0.5, 16, SIZE=size, HOW="negated", num_stages=1)
        add_kernel[(1,)](x[1:], other, 0.5, 1, SIZE=size, HOW="plain", enable_fp_fusion=False)
        copy_kernel[(1,)](x, other, SIZE=size, num_warps=4)


def forget_in_memory() -> None:
    for kernel in (add_kernel, copy_kernel):
        kernel.device_caches.clear()


def compiled_ahead() -> dict[str, list[bool]]:
    """By kernel and in order, whether it came from disk."""
    found: dict[str, list[bool]] = {}

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        found.setdefault(src.fn.__name__, []).append(cache_hit)

    triton.knobs.compilation.listener = listen
    with ahead.compile_ahead():
        launch_all()
    assert triton.knobs.compilation.listener is listen
    forget_in_memory()
    return found


def break_copies(how: str) -> None:
    """Makes every copy of this process end at once, or never."""
    fork = os.fork

    def broken() -> int:
        child = fork()
        if not child:
            if how == "hang":
                time.sleep(600)
            os._exit(9)
        return child

    os.fork = broken
    vars(ahead)["run_forked"] = partial(forked.run_forked, patience_s=0.5)


def main() -> None:
    how = sys.argv[1]
    made_up = HopperWithoutDriver()
    driver.set_active(made_up)
    if how != "work":
        break_copies(how)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        cold = compiled_ahead()
    warm = compiled_ahead()
    print(
        json.dumps(
            {
                "cold": cold,
                "warm": warm,
                "launchers": made_up.launchers,
                "warnings": [str(one.message) for one in warned],
            }
        )
    )


if __name__ == "__main__":
    main()
