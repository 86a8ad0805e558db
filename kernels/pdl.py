"""Programmatic dependent launch: a kernel begins while the one before it in the stream ends.

From Hopper on. A kernel launched with `pdl_options` may start once every program of the one before
has called start_next or ended. It calls start_next first thing itself, loads what no kernel of the
step writes (weights, tables, positions), then wait_for_previous: when that returns, the kernel
before has ended and all it wrote can be seen. Only then may it read or write anything else. Since
every kernel waits, all earlier ones have ended, too; one that is launched without takes no part and
starts after the end of the one before, as ever.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pagetwin.kernels.device import capability


@triton.jit
def start_next(PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    if PDL:
        gdc_wait()


def pdl_options(x: Tensor) -> dict[str, bool]:
    """Options of a launch on x's device: PDL, a constexpr of the kernel, and what goes with it."""
    return _options(x.device)


@cache
def _options(device: torch.device) -> dict[str, bool]:
    if capability(device) < 90:
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}
