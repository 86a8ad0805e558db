"""Kernels in Gluon: where they can be had."""

import functools
import importlib
from types import ModuleType

import triton


@functools.cache
def gluon_kernels(name: str) -> ModuleType | str:
    """A module of kernels, or why it cannot be had: Gluon is still changing."""
    if triton.knobs.runtime.interpret:
        return "Gluon has no interpreter"
    try:
        return importlib.import_module(f"pagetwin.kernels.{name}")
    except (ImportError, AttributeError) as error:
        return f"this Triton's Gluon lacks what it needs: {error}"
