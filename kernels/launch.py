"""Launches kernels without working out anew, each time, which compiled variant suits.

Triton compiles a kernel for what it is given: dtypes, constants, whether a pointer or an integer is
a multiple of 16, whether an integer is 1. Finding the variant again takes most of the time of a
launch, some 10 us; here it is a look-up by those facts alone.
"""

from typing import Any

import torch

from pagetwin.kernels.pdl import pdl_options

_INT32 = range(-(2**31), 2**31)


class Launcher:
    """Launches one kernel.

    `options` are those of every launch. If the kernel has a last constant PDL, it is set, and with
    it how the kernel is launched, as the device allows (kernels/pdl.py).
    """

    def __init__(self, kernel: Any, **options: Any) -> None:
        self._kernel = kernel
        self._options = options
        self._has_pdl = kernel.arg_names[-1] == "PDL"
        self._variants: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self,
        grid: tuple[int, int, int],
        args: tuple[Any, ...],
        constants: tuple[Any, ...],
        num_warps: int = 4,
    ) -> None:
        """`args`, of which the first is a tensor or a descriptor of one, then `constants`, in the
        kernel's order."""
        tensor = args[0] if isinstance(args[0], torch.Tensor) else args[0].base
        key = (num_warps, tensor.get_device(), constants, *map(_facts, args))
        variant = self._variants.get(key)
        if variant is not None:
            compiled, constants = variant
            compiled[grid](*args, *constants)
            return
        options = {"num_warps": num_warps, **self._options}
        if self._has_pdl:
            options |= pdl_options(tensor)
            constants = (*constants, options.pop("PDL"))
        # Interpreted kernels return nothing.
        if compiled := self._kernel[grid](*args, *constants, **options):
            self._variants[key] = compiled, constants


def _facts(argument: Any) -> Any:
    """What of an argument decides how a kernel is compiled for it."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument in _INT32
    if hasattr(argument, "block_shape"):
        return argument.base.dtype, *argument.block_shape, argument.layout
    return type(argument)
