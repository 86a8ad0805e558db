"""Schedulers over an executor without a model: exact, float-free, and fast."""

from collections.abc import Callable

from pagetwin.conformance.adapters.protocol import (
    EngineInfo,
    SessionConfig,
    SessionRefused,
    SteppingSession,
)
from pagetwin.conformance.adapters.scheduler_flags import SCHEDULER_FLAGS
from pagetwin.conformance.adapters.stepping import SchedulerSession
from pagetwin.conformance.answers import CompletedAnswers
from pagetwin.conformance.capability import Capabilities, Flag, Support, no
from pagetwin.conformance.scripted import ScriptedAnswers
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.step import Executor, SteppingScheduler

VOCAB_SIZE = 64
"""Where a session does not say."""
DEFAULT_CACHE = CacheConfig(num_blocks=64, block_size=4, num_host_blocks=16)
DEFAULT_SCHEDULER = SchedulerConfig(
    max_model_len=128, max_num_seqs=8, max_num_batched_tokens=64, wait_for_prefix=True
)

FLAGS = (
    *SCHEDULER_FLAGS,
    Flag.FAILING_ROWS,
    Flag.VIRTUAL_CLOCK,
    Flag.INVARIANT_BATCH,
    Flag.INVARIANT_CHUNK,
    Flag.INVARIANT_CACHE_HISTORY,
    Flag.INVARIANT_PREEMPT,
)
_NO_MODEL = no("there is no model: a token is a hash of what stands before it")
OTHERS: dict[Flag, Support] = {
    Flag.TEXT: no("tokens are numbers without a text"),
    Flag.STOP_STRINGS: no("tokens are numbers without a text"),
    Flag.STREAMING: no("there is no client; tokens are seen as they come"),
    Flag.TEMPERATURE: _NO_MODEL,
    Flag.PENALTIES: _NO_MODEL,
    Flag.CHOSEN_LOGPROB: _NO_MODEL,
    Flag.TOPK_LOGPROB: _NO_MODEL,
    Flag.PROMPT_LOGPROBS: _NO_MODEL,
    Flag.RAW_LOGITS: _NO_MODEL,
    Flag.SUPPORT_MASK: _NO_MODEL,
    Flag.SCORE: _NO_MODEL,
    Flag.NOISE_KNOWN: _NO_MODEL,
    Flag.CHECKPOINT: _NO_MODEL,
    Flag.FAULT_INJECTION: no("there is no engine around its scheduler that could suffer a fault"),
    Flag.READ_KV: no("slots are hashes; there is no K and V"),
    Flag.POISON: no("slots are hashes; there is no K and V"),
}


class WithoutModelAdapter:
    """A scheduler whose output changes when one slot is wrong."""

    def __init__(
        self,
        name: str,
        make_scheduler: Callable[[CacheConfig, SchedulerConfig], SteppingScheduler],
        *,
        is_the_twin: bool = False,
    ) -> None:
        self._name = name
        self._make_scheduler = make_scheduler
        self._is_the_twin = is_the_twin

    def describe(self) -> EngineInfo:
        return EngineInfo(name=self._name, model="a hash", device="cpu", vocab_size=VOCAB_SIZE)

    def capabilities(self) -> Capabilities:
        if not self._is_the_twin:
            return Capabilities.of((*FLAGS, Flag.NOT_THE_TWIN), OTHERS)
        reason = no("it is the twin: compared with itself it would show nothing")
        return Capabilities.of(FLAGS, {**OTHERS, Flag.NOT_THE_TWIN: reason})

    def open(self, config: SessionConfig) -> SteppingSession:
        """Raises SessionRefused if the session names a model."""
        if config.model is not None:
            raise SessionRefused(f"model={config.model!r}: {self._name} has no model to load")
        if config.with_text:
            raise SessionRefused(f"with_text: {OTHERS[Flag.TEXT].reason}")
        if config.fault is not None:
            raise SessionRefused(f"fault: {OTHERS[Flag.FAULT_INJECTION].reason}")
        cache = config.cache or DEFAULT_CACHE
        limits = config.scheduler or DEFAULT_SCHEDULER
        executor: Executor = ScriptedAnswers(config.outputs, max_model_len=limits.max_model_len)
        if not config.outputs:
            executor = CompletedAnswers(
                FingerprintExecutor(cache, vocab_size=config.vocab_size or VOCAB_SIZE),
                max_model_len=limits.max_model_len,
                failing=config.failing_requests,
            )
        scheduler = self._make_scheduler(cache, limits)
        return SchedulerSession(self.describe(), cache, limits, scheduler, executor)

    def close(self) -> None:
        """Nothing is held."""
