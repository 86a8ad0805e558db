"""What a GPU is, and which kernels in Gluon can be had."""

import importlib
from functools import cache
from types import ModuleType

import torch
import triton


@cache
def capability(device: torch.device) -> int:
    """The compute capability, 90 for 9.0; 0 where the device is no GPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def gluon_kernels(name: str) -> ModuleType | str:
    """A module of kernels, or why it cannot be had: Gluon is still changing."""
    if triton.knobs.runtime.interpret:
        return "Gluon has no interpreter"
    try:
        return importlib.import_module(f"pagetwin.kernels.{name}")
    except (ImportError, AttributeError) as error:
        return f"this Triton's Gluon lacks what it needs: {error}"
