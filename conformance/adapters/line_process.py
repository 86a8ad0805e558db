"""A child process that answers lines of JSON with lines of JSON, under a watchdog."""

import json
import os
import selectors
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pagetwin.conformance.adapters.protocol import AdapterError, EngineDied, EngineTimeout
from pagetwin.conformance.adapters.watchdog import Deadline

_CHUNK = 1 << 16
_GRACE_S = 5.0
"""For a child to end by itself once its standard input is closed."""
_ERROR_LINES = 5


class LineProcess:
    """Sends one JSON object a line; what comes back is read with a deadline.

    The child's standard error goes to a file, whose last lines explain a death. Raises
    AdapterError if there is no such program.
    """

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = shlex.join(command)
        # Closed by close(), with the child.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._buffer = b""
        try:
            self._child = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=None if environment is None else {**os.environ, **environment},
            )
        except OSError as error:
            self._errors.close()
            raise AdapterError(
                f"{self.name}: cannot be started ({error.strerror}); give a program that exists "
                "and may be run"
            ) from None
        assert self._child.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._child.stdout, selectors.EVENT_READ)

    def send(self, message: Mapping[str, Any]) -> None:
        """A child that no longer listens is told of by `lines`, after all that it has said: it may
        have answered, well or badly, before it ended."""
        assert self._child.stdin is not None
        with suppress(OSError):
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()

    def lines(self, timeout_s: float) -> Iterator[bytes]:
        """The lines that come, without their ends, each within what is left of the time.

        Raises EngineTimeout, and ends the child, once the time is up; EngineDied if it ends.
        """
        deadline = Deadline(timeout_s)
        while True:
            head, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                yield head
                continue
            if not self._selector.select(deadline.left_s):
                self.kill()
                raise EngineTimeout(
                    f"{self.name}: said nothing more within {timeout_s:g} s, and was ended"
                )
            assert self._child.stdout is not None
            chunk = os.read(self._child.stdout.fileno(), _CHUNK)
            if not chunk:
                raise EngineDied(self._obituary())
            self._buffer += chunk

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def close(self) -> None:
        """Closes the child's input; ends it if it does not end by itself."""
        if self._errors.closed:
            return
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.close()
        except BrokenPipeError:
            # It is dead already, with something of ours unread.
            self._child.kill()
        try:
            self._child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._selector.close()
        self._child.stdout.close()
        self._errors.close()

    def _obituary(self) -> str:
        try:
            code = self._child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.name}: closed its output without ending, and was ended"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        last = " / ".join(said[-_ERROR_LINES:]) or "nothing on standard error"
        return f"{self.name}: ended with code {code}; it said: {last}"
