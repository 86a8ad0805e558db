"""Compiles the kernels that a piece of code would launch, many at once, without running them."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.runtime import JITFunction


@contextmanager
def compile_ahead() -> Iterator[None]:
    """Launches within only have their kernels compiled, by all processors; at the end all are.

    What kernels would write stays as it was, so that what the code computes means nothing.
    Launches run as usual, and compile one after the other, where Triton interprets kernels or
    does not compile in the background (it does since 3.6).
    """
    mode = getattr(triton, "AsyncCompileMode", None)
    if mode is None or triton.knobs.runtime.interpret:
        yield
        return
    run: Any = JITFunction.run
    seen = set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        key = self, *map(_facts, args), *((name, _facts(x)) for name, x in options.items())
        if key not in seen:
            seen.add(key)
            run(self, *args, grid=grid, warmup=True, **options)

    with ThreadPoolExecutor(os.cpu_count()) as pool, mode(pool):
        JITFunction.run = compile_only
        try:
            yield
        finally:
            JITFunction.run = run


def _facts(argument: Any) -> Any:
    """At least what decides how a kernel is compiled for the argument."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int | float | str | None):
        return argument
    return type(argument)
