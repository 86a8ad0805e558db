"""`cmd:COMMAND LINE`: an adapter that is a program, in any language.

The harness writes one JSON object a line to its standard input and reads lines from its standard
output. docs/adding_an_adapter.md has the messages; serve.py is the other side, in Python.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from pagetwin.conformance.adapters.line_process import LineProcess
from pagetwin.conformance.adapters.protocol import (
    AdapterError,
    EngineCrashed,
    EngineInfo,
    SessionConfig,
    SessionRefused,
)
from pagetwin.conformance.capability import Capabilities, Flag, Support, no
from pagetwin.conformance.observation import AnyObservation, decode_observation
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.trace import Record

ANSWER_TIMEOUT_S = 120.0
"""For anything but `run`: a model may have to be loaded."""
NOT_OVER_A_PIPE = (
    Flag.STEP_CONTROL,
    Flag.SCORE,
    Flag.FORCE_PREEMPT,
    Flag.FAULT_INJECTION,
    Flag.READ_KV,
    Flag.POISON,
)

Answer = TypeVar("Answer")


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of every answer: `ok`, or `refused`, `crashed` or `error` with a text."""

    reply: str
    text: str = ""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    info: EngineInfo
    capabilities: dict[Flag, Support]


_record_decoder = msgspec.json.Decoder(Record)


class CommandAdapter:
    """One child process; it holds one session at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = LineProcess(command)
        try:
            [line] = self.ask({"do": "describe"}, ANSWER_TIMEOUT_S)
            self._described = self._decode(line, Described)
        except ValueError:
            self.close()
            raise AdapterError(
                f"{self._process.name}: 'describe' must be answered by one line before the reply"
            ) from None
        except AdapterError:
            self.close()
            raise

    def describe(self) -> EngineInfo:
        return self._described.info

    def capabilities(self) -> Capabilities:
        reason = no("an engine behind a pipe is not stepped from outside")
        others = dict.fromkeys(NOT_OVER_A_PIPE, reason)
        return Capabilities(self._described.capabilities | others)

    def open(self, config: SessionConfig) -> "CommandSession":
        self.ask({"do": "open", "config": msgspec.to_builtins(config)}, ANSWER_TIMEOUT_S)
        if self.capabilities().has(Flag.STEP_TRACE):
            return RecordingCommandSession(self)
        return CommandSession(self)

    def close(self) -> None:
        self._process.close()

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> list[bytes]:
        """The lines of an answer before its reply.

        Raises SessionRefused, EngineCrashed or AdapterError as the reply says.
        """
        body: list[bytes] = []
        self._exchange(message, timeout_s, body)
        return body

    def observe(
        self, message: Mapping[str, Any], timeout_s: float, seen: list[AnyObservation]
    ) -> None:
        """Likewise; each line is an observation, and counts whatever the reply."""
        source = f"{self._process.name}: answer to {message['do']!r}"
        body: list[bytes] = []
        try:
            self._exchange(message, timeout_s, body)
        finally:
            try:
                seen += [decode_observation(line, source) for line in body]
            except TraceError as error:
                raise AdapterError(str(error)) from None

    def _exchange(self, message: Mapping[str, Any], timeout_s: float, body: list[bytes]) -> None:
        self._process.send(message)
        for line in self._process.lines(timeout_s):
            if not line.startswith(b'{"reply"'):
                body.append(line)
                continue
            reply = self._decode(line, Reply)
            if reply.reply == "refused":
                raise SessionRefused(reply.text or f"{self._process.name} gives no reason")
            if reply.reply == "crashed":
                raise EngineCrashed(reply.text)
            if reply.reply != "ok":
                raise AdapterError(f"{self._process.name}: {message['do']}: {reply.text}")
            return
        raise AssertionError("lines() ends only by an error")

    def records(self) -> list[Record]:
        """The session's history; raises AdapterError on a line that is no record."""
        lines = self.ask({"do": "records"}, ANSWER_TIMEOUT_S)
        return [self._decode_record(line) for line in lines]

    def _decode_record(self, line: bytes) -> Record:
        try:
            record: Record = _record_decoder.decode(line)
        except msgspec.DecodeError as error:
            raise AdapterError(f"{self._process.name}: not a history record ({error})") from None
        return record

    def _decode(self, line: bytes, form: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(line, type=form)
        except msgspec.DecodeError as error:
            shown = line[:120].decode(errors="replace")
            raise AdapterError(
                f"{self._process.name}: the line {shown!r} is not as it must be ({error}); "
                "docs/adding_an_adapter.md has the messages"
            ) from None


class CommandSession:
    """A session on the other side of the pipe."""

    def __init__(self, adapter: CommandAdapter) -> None:
        self._adapter = adapter
        self._observed: list[AnyObservation] = [adapter.describe().opened()]
        self._is_open = True

    def submit(self, request: Request, *, cancel_after: int | None = None) -> None:
        wanted = {"do": "submit", "request": msgspec.to_builtins(request)}
        self._ask({**wanted, "cancel_after": cancel_after}, ANSWER_TIMEOUT_S)

    def cancel(self, request_id: str) -> None:
        self._ask({"do": "cancel", "request_id": request_id}, ANSWER_TIMEOUT_S)

    def reset_prefix_cache(self) -> bool:
        """False if the other side refuses."""
        try:
            self._ask({"do": "reset_prefix_cache"}, ANSWER_TIMEOUT_S)
        except SessionRefused:
            return False
        return True

    def run(self, timeout_s: float) -> None:
        self._ask({"do": "run", "timeout_s": timeout_s}, timeout_s)

    def observations(self) -> Sequence[AnyObservation]:
        return self._observed

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._adapter.ask({"do": "close"}, ANSWER_TIMEOUT_S)

    def _ask(self, message: Mapping[str, Any], timeout_s: float) -> None:
        self._adapter.observe(message, timeout_s, self._observed)


class RecordingCommandSession(CommandSession):
    """With the records of its steps."""

    def records(self) -> Sequence[Record]:
        return self._adapter.records()


def make(target: str, options: Mapping[str, Any]) -> CommandAdapter:
    """Starts the command, which must answer 'describe' within ANSWER_TIMEOUT_S."""
    assert not options, "a command line is taken whole"
    try:
        command = shlex.split(target)
    except ValueError as error:
        raise AdapterError(f"'cmd:{target}': {error}; mind the quotes") from None
    if not command:
        raise AdapterError("'cmd:' names no program; write cmd:./my-adapter --its-flags")
    return CommandAdapter(command)
