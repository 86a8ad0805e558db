"""Runs tasks in forked processes, for what they leave on disk."""

import gc
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

PATIENCE_S = 300.0
"""Longer than any compiler takes, for a process that hangs."""
MOST_PROCESSES = 16
"""Each may come to some 300 MB of its own."""


def num_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_forked(
    tasks: Sequence[Callable[[], object]],
    *,
    max_processes: int | None = None,
    patience_s: float = PATIENCE_S,
) -> None:
    """Runs the tasks, as many at once as there are processors, in copies of this process.

    Results are lost and errors are dropped: whoever needs what a task was to leave looks for it,
    and runs the task if it is not there. So this does nothing where there is no fork, and warns
    and goes on where a copy hangs.

    This process may use a GPU, and waits meanwhile; a copy has no part in the GPU, so the tasks
    must not use it. Nor may they wait for locks that other threads may hold right now.
    """
    if len(tasks) < 2 or not hasattr(os, "fork"):
        return
    numbers, feed = os.pipe()
    # A pipe holds 32,768 of them, and a reader gets each whole.
    os.write(feed, b"".join(number.to_bytes(2, "little") for number in range(len(tasks))[:32_768]))
    os.close(feed)
    children = set[int]()
    try:
        for _ in range(min(len(tasks), max_processes or num_processors(), MOST_PROCESSES)):
            children.add(_fork(tasks, numbers))
    finally:
        os.close(numbers)
        _await(children, patience_s)


def _fork(tasks: Sequence[Callable[[], object]], numbers: int) -> int:
    """A copy that takes numbers of tasks until there are none; its id."""
    with warnings.catch_warnings():
        # Threads may hold locks when a process is copied: what that means for tasks is said above.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        # What the collector might find belongs to the original, and some of it to its GPU.
        gc.disable()
        while number := os.read(numbers, 2):
            with suppress(Exception):
                tasks[int.from_bytes(number, "little")]()
    finally:
        os._exit(0)


def _await(children: set[int], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while children and time.monotonic() < deadline:
        time.sleep(0.005)
        children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
    if children:
        warnings.warn(
            f"{len(children)} of the processes that compile kernels took over {patience_s:g} s and "
            "were ended; this one compiles what is missing",
            stacklevel=2,
        )
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
