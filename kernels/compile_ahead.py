"""Compiles the kernels that a piece of code would launch, many at once, without running them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.runtime import JITFunction, driver

from pagetwin.kernels.forked import num_processors, run_forked


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

    collected = _Collected()
    with mode(collected):
        JITFunction.run = compile_only
        try:
            yield
        finally:
            JITFunction.run = run
            collected.compile_all()


class _Collected(Executor):
    """What Triton wants compiled in the background, to be compiled when all is known.

    Triton's compiler holds Python's lock nearly all the time, so threads do not make it faster.
    But it keeps what it has compiled on disk: processes fill that, and this one reads it.
    """

    def __init__(self) -> None:
        self._tasks: list[tuple[Callable[[], Any], Future[Any]]] = []

    def submit(self, fn: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        self._tasks.append((fn, future))
        return future

    def compile_all(self) -> None:
        """Resolves what `submit` has returned, with an error if something goes wrong."""
        tasks = iter(self._tasks)
        try:
            with _noticing_misses() as missed:
                for number, (compile_one, future) in enumerate(tasks, 1):
                    future.set_result(compile_one())
                    if missed:
                        run_forked([other for other, _ in self._tasks[number:]])
                        break
            for compile_one, future in tasks:
                future.set_result(compile_one())
            _make_launchers([future.result() for _, future in self._tasks])
        except BaseException as error:
            # Triton waits for all of them, and raises it.
            for _, future in self._tasks:
                if not future.done():
                    future.set_exception(error)


def _make_launchers(kernels: Iterable[Any]) -> None:
    """Has the C code compiled that launches kernels, where Triton would do so at the first launch.

    It depends on the types of a kernel's arguments, so that many kernels share one.
    """
    by_types = {tuple(map(str, kernel.src.signature.values())): kernel for kernel in kernels}
    with ThreadPoolExecutor(num_processors()) as threads:
        # A C compiler does the work, so threads suffice. The first launch tells of errors.
        for kernel in by_types.values():
            threads.submit(driver.active.launcher_cls, kernel.src, kernel.metadata)


@contextmanager
def _noticing_misses() -> Iterator[list[str]]:
    """The names of kernels that Triton compiles meanwhile and had not on disk."""
    names: list[str] = []
    before = triton.knobs.compilation.listener

    def listen(*, src: Any, cache_hit: bool, **facts: Any) -> None:
        if not cache_hit:
            names.append(src.name)
        if before is not None:
            before(src=src, cache_hit=cache_hit, **facts)

    triton.knobs.compilation.listener = listen
    try:
        yield names
    finally:
        triton.knobs.compilation.listener = before


def _facts(argument: Any) -> Any:
    """At least what decides how a kernel is compiled for the argument."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int | float | str | None):
        return argument
    return type(argument)
