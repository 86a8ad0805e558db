"""The suite's own watchdog: nothing that an engine does, or does not do, stops a run."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pagetwin.conformance.adapters.protocol import EngineTimeout


class Deadline:
    """A point in time, for loops that look at it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def check(self, who: str) -> None:
        """Raises EngineTimeout once the time is up."""
        if self.left_s <= 0:
            raise EngineTimeout(
                f"{who}: requests were still running after {self._seconds:g} s; the engine hangs, "
                "or needs a larger --timeout"
            )


@contextmanager
def watched(seconds: float, who: str) -> Iterator[None]:
    """Raises EngineTimeout in the body if it takes longer, wherever it is.

    It is a timer signal, which only a process's main thread can take: elsewhere there is no such
    net, and loops must look at a Deadline. A call that never returns to Python cannot be ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(signum: int, frame: FrameType | None) -> None:
        raise EngineTimeout(f"{who}: did not return within {seconds:g} s; the engine hangs")

    before = signal.signal(signal.SIGALRM, ring)
    outer_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    begun = time.monotonic()
    try:
        yield
    finally:
        # An outer watch goes on with what is left of it.
        left = max(0.001, outer_s - (time.monotonic() - begun)) if outer_s else 0.0
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)
