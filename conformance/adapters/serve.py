"""The other side of `cmd:`: serves any adapter over standard input and output.

`python -m pagetwin.conformance.adapters.serve SPEC` puts an engine into a process of its own.
"""

import sys
from typing import IO, Any

import msgspec

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    AdapterError,
    EngineCrashed,
    RecordingSession,
    ResettableSession,
    Session,
    SessionConfig,
    SessionRefused,
)
from pagetwin.conformance.observation import Opened
from pagetwin.engine.errors import PagetwinError
from pagetwin.engine.request import Request


class Server:
    """Answers messages, one at a time, about one adapter."""

    def __init__(self, adapter: Adapter, output: IO[bytes]) -> None:
        self._adapter = adapter
        self._output = output
        self._session: Session | None = None
        self._num_told = 0

    def serve(self, source: IO[bytes]) -> None:
        """Until the input ends."""
        for line in source:
            try:
                self._answer(msgspec.json.decode(line))
                self._say({"reply": "ok"})
            except SessionRefused as error:
                self._say({"reply": "refused", "text": str(error)})
            except EngineCrashed as error:
                self._say({"reply": "crashed", "text": str(error)})
            except (PagetwinError, msgspec.MsgspecError, KeyError) as error:
                self._say({"reply": "error", "text": f"{type(error).__name__}: {error}"})

    def _answer(self, message: dict[str, Any]) -> None:
        what = message["do"]
        if what == "describe":
            support = self._adapter.capabilities().support
            self._say({"info": self._adapter.describe(), "capabilities": support})
        elif what == "open":
            self._close()
            config = msgspec.convert(message["config"], SessionConfig)
            self._session = self._adapter.open(config)
            self._num_told = 0
        elif what == "close":
            self._close()
        else:
            if self._session is None:
                raise AdapterError(f"{what!r} came without an open session; 'open' comes first")
            try:
                self._drive(self._session, what, message)
            finally:
                self._tell(self._session)

    def _drive(self, session: Session, what: str, message: dict[str, Any]) -> None:
        if what == "submit":
            # JSON has only strings for keys; those of a logit_bias are numbers.
            request = msgspec.convert(message["request"], Request, str_keys=True)
            session.submit(request, cancel_after=message.get("cancel_after"))
        elif what == "cancel":
            session.cancel(message["request_id"])
        elif what == "run":
            session.run(float(message["timeout_s"]))
        elif what == "reset_prefix_cache":
            if not isinstance(session, ResettableSession) or not session.reset_prefix_cache():
                raise SessionRefused("the cache cannot be reset now")
        elif what == "records":
            if not isinstance(session, RecordingSession):
                raise SessionRefused("these sessions have no records")
            for record in session.records():
                self._say(record)
        else:
            raise SessionRefused(f"there is nothing to {what!r}")

    def _tell(self, session: Session) -> None:
        """What was observed since the last answer; the harness knows `opened` by itself."""
        observed = session.observations()
        for one in observed[self._num_told :]:
            if not isinstance(one, Opened):
                self._say(one)
        self._num_told = len(observed)

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    def _say(self, message: Any) -> None:
        self._output.write(msgspec.json.encode(message) + b"\n")
        self._output.flush()


def main() -> None:
    from pagetwin.conformance.adapters.spec import make_adapter

    adapter = make_adapter(sys.argv[1])
    output = sys.stdout.buffer
    # Whatever the engine prints must not come between the messages.
    sys.stdout = sys.stderr
    Server(adapter, output).serve(sys.stdin.buffer)
    adapter.close()


if __name__ == "__main__":
    main()
