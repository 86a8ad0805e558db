"""Decides where calls run that do not depend on each other: in processes of this machine."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from pagetwin.engine.errors import ConfigError

T = TypeVar("T")


class LocalProcesses:
    """So many processes, or one a processor; where that is one, calls run in this process.

    Raises ConfigError on a number below 1.
    """

    def __init__(self, num_processes: int | None = None) -> None:
        if num_processes is not None and num_processes < 1:
            raise ConfigError(f"--processes {num_processes} is below 1; leave it out for all")
        count = num_processes or os.cpu_count() or 1
        self._pool = ProcessPoolExecutor(count) if count > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def starmap(
        self, function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]
    ) -> Iterator[T]:
        """What the function returns for each tuple of arguments, in order, as it is there.

        Function, arguments and results travel between processes, so they must be picklable; what
        the function raises is raised here.
        """
        if self._pool is None:
            return (function(*given) for given in arguments)
        futures = [self._pool.submit(function, *given) for given in arguments]
        return (future.result() for future in futures)
