"""`fingerprint:`: the engine's scheduler over the executor without a model."""

from collections.abc import Mapping
from typing import Any

from pagetwin.conformance.adapters.faulty_session import FaultyOwnSession
from pagetwin.conformance.adapters.options import refuse_unknown
from pagetwin.conformance.adapters.own_session import OwnSession
from pagetwin.conformance.adapters.protocol import (
    SessionConfig,
    SessionRefused,
    SteppingSession,
)
from pagetwin.conformance.adapters.without_model import (
    DEFAULT_CACHE,
    DEFAULT_SCHEDULER,
    VOCAB_SIZE,
    WithoutModelAdapter,
)
from pagetwin.conformance.capability import YES, Capabilities, Flag, conditional
from pagetwin.conformance.faults.striking import FingerprintUnderFault, Strikes
from pagetwin.conformance.tiny_tokenizer import TinyTokenizer
from pagetwin.engine.config import EngineConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.trace import HistoryWriter

WITH_TEXT = conditional("in sessions that ask for text")


class FingerprintAdapter(WithoutModelAdapter):
    """The scheduler by itself; for text, or for a fault to strike, the whole engine around it."""

    def __init__(self) -> None:
        super().__init__("fingerprint", Scheduler)

    def capabilities(self) -> Capabilities:
        own = {
            Flag.FAULT_INJECTION: YES,
            Flag.TEXT: WITH_TEXT,
            Flag.STOP_STRINGS: WITH_TEXT,
            Flag.SHOWN_STOP_STRINGS: WITH_TEXT,
            Flag.STREAMING: WITH_TEXT,
        }
        return Capabilities(super().capabilities().support | own)

    def open(self, config: SessionConfig) -> SteppingSession:
        if config.fault is None and not config.with_text:
            return super().open(config)
        if config.failing_requests or config.outputs:
            raise SessionRefused(
                "failing_requests, outputs: not beside a fault or text; leave out one of the two"
            )
        try:
            return self._open_engine(config)
        except ConfigError as error:
            raise SessionRefused(str(error)) from None

    def _open_engine(self, config: SessionConfig) -> OwnSession:
        strikes = Strikes(config.fault)
        cache = config.cache or DEFAULT_CACHE
        vocab_size = config.vocab_size or VOCAB_SIZE
        executor = FingerprintExecutor(cache, vocab_size=vocab_size)
        history = HistoryWriter(keep=True, with_block_tables=True)
        engine = LLMEngine(
            EngineConfig(
                cache=cache, scheduler=config.scheduler or DEFAULT_SCHEDULER, debug_invariants=True
            ),
            FingerprintUnderFault(executor, strikes),
            vocab_size=vocab_size,
            tokenizer=TinyTokenizer.of_size(vocab_size) if config.with_text else None,
            history=history,
            clock=strikes.clock(lambda: 0.0),
        )
        if config.fault is None:
            return OwnSession(self.describe(), engine, history)
        return FaultyOwnSession(
            self.describe(), engine, history, strikes, lambda: executor.num_kept
        )


def make(target: str, options: Mapping[str, Any]) -> FingerprintAdapter:
    """`fingerprint:` takes neither a target nor options."""
    refuse_unknown("fingerprint:", target, options)
    return FingerprintAdapter()
