"""How a long command shows that it is alive: bars on a terminal, nothing anywhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class BarProgress:
    """One line for each phase, with a bar where the phase has a length."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, phase: str, total: int | None) -> None:
        self.end()
        self._task = self._progress.add_task(phase, total=total)

    def advance_to(self, done: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done)

    def end(self) -> None:
        """The phase is over; its line stays, full."""
        if self._task is not None:
            task = self._progress.tasks[self._task]
            total = task.total if task.total is not None else 1
            self._progress.update(self._task, total=total, completed=total)


class NoProgress:
    """For a pipe, a log or a test."""

    def begin(self, phase: str, total: int | None) -> None:
        """Says nothing."""

    def advance_to(self, done: int) -> None:
        """Says nothing."""

    def end(self) -> None:
        """Says nothing."""


@contextmanager
def terminal_progress() -> Iterator[BarProgress | NoProgress]:
    """Bars on standard error if that is a terminal, so that standard output stays clean."""
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield NoProgress()
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars = BarProgress(progress)
        yield bars
        bars.end()
