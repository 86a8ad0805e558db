"""A session of our engine that a fault strikes."""

from collections.abc import Callable

from pagetwin.conformance.adapters.own_session import OwnSession
from pagetwin.conformance.adapters.protocol import EngineInfo
from pagetwin.conformance.faults.striking import Strikes
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.trace import HistoryWriter


class FaultyOwnSession(OwnSession):
    """A FaultySession; `num_kept` counts what the executor remembers."""

    def __init__(
        self,
        info: EngineInfo,
        engine: LLMEngine,
        history: HistoryWriter,
        strikes: Strikes,
        num_kept: Callable[[], int],
    ) -> None:
        super().__init__(info, engine, history)
        self.strikes = strikes
        self._num_kept = num_kept
        strikes.attach(engine)

    def num_kept(self) -> int:
        return self._num_kept()
