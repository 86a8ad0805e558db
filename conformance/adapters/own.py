"""`pagetwin:MODEL?{json}`: our engine, with a real model or a random one."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch
from torch import Tensor

from pagetwin.conformance.adapters.faulty_session import FaultyOwnSession
from pagetwin.conformance.adapters.memory_session import MemoryOwnSession
from pagetwin.conformance.adapters.options import read_options
from pagetwin.conformance.adapters.own_session import OwnSession
from pagetwin.conformance.adapters.protocol import (
    AdapterError,
    EngineInfo,
    SessionConfig,
    SessionRefused,
)
from pagetwin.conformance.adapters.random_checkpoint import RandomModel, write_random_checkpoint
from pagetwin.conformance.adapters.scheduler_flags import SCHEDULER_FLAGS
from pagetwin.conformance.capability import Capabilities, Flag, Support, conditional, no
from pagetwin.conformance.environment import versions
from pagetwin.conformance.faults.model_under_fault import under_fault
from pagetwin.conformance.faults.striking import Strikes
from pagetwin.conformance.numerics.attention import attend, spec_of
from pagetwin.conformance.tiny_tokenizer import TinyTokenizer
from pagetwin.engine.attention.registry import resolve_backend
from pagetwin.engine.config import CacheConfig, DType, EngineConfig, ModelConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError, ModelError
from pagetwin.engine.factory import build_runner, cache_sliding_window, resolve_device
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.models.loader import LoadedModel, load_model
from pagetwin.engine.tokenizer import Tokenizer, load_tokenizer
from pagetwin.engine.trace import HistoryWriter
from pagetwin.kernels.trial import Span

RANDOM = "random"
FLAGS = (
    *SCHEDULER_FLAGS,
    Flag.READ_KV,
    Flag.POISON,
    Flag.STREAMING,
    Flag.TEMPERATURE,
    Flag.PENALTIES,
    Flag.CHOSEN_LOGPROB,
    Flag.TOPK_LOGPROB,
    Flag.PROMPT_LOGPROBS,
    Flag.SCORE,
    Flag.NOT_THE_TWIN,
    Flag.NOISE_KNOWN,
    Flag.CHECKPOINT,
    Flag.ATTENTION,
    Flag.COMPONENTS,
    Flag.FAULT_INJECTION,
    Flag.FAILING_ROWS,
)
_BY_SIZE = "a CPU's matrix products choose the order of their sums by the number of rows"
_INVARIANT = (
    Flag.INVARIANT_BATCH,
    Flag.INVARIANT_CHUNK,
    Flag.INVARIANT_CACHE_HISTORY,
    Flag.INVARIANT_PREEMPT,
)
_OTHERS: dict[Flag, Support] = {
    Flag.TEXT: conditional("in sessions that ask for text"),
    Flag.STOP_STRINGS: conditional("in sessions that ask for text"),
    Flag.SHOWN_STOP_STRINGS: conditional("in sessions that ask for text"),
    Flag.RAW_LOGITS: no("logits stay inside; log-probabilities come out"),
    Flag.SUPPORT_MASK: no("the sampler does not hand out its masks"),
    Flag.KV_EVENTS: no("its records say which blocks are cached"),
    Flag.VIRTUAL_CLOCK: no("it computes in real time"),
}


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Behind `?`. Those of RandomModel describe the model `random`."""

    dtype: DType = "auto"
    device: str = "auto"
    attention_backend: str = "auto"
    num_blocks: int = 256
    block_size: int = 16
    num_host_blocks: int = 64
    max_model_len: int = 512
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 256
    seed: int = 0
    vocab_size: int = 32
    hidden_size: int = 32
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2

    def random_model(self, vocab_size: int | None = None) -> RandomModel:
        return RandomModel(
            seed=self.seed,
            vocab_size=vocab_size or self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            dtype=self.dtype,
        )


class OwnAdapter:
    """Our engine; models are loaded once and shared by the sessions."""

    def __init__(self, model: str, options: Options) -> None:
        self._model = model
        self._options = options
        self._folder = TemporaryDirectory(prefix="pagetwin-random-")
        self._loaded: dict[str, LoadedModel] = {}
        self._device = resolve_device(_device(options.device))
        self._loaded_model(self._path(None))

    def describe(self) -> EngineInfo:
        path = self._path(None)
        spec = self._loaded_model(path).spec
        limits = self._scheduler_config(path)
        return EngineInfo(
            name="pagetwin",
            version=versions()["pagetwin"],
            model=path,
            dtype=str(spec.dtype).removeprefix("torch."),
            device=str(self._device),
            vocab_size=spec.vocab_size,
            max_model_len=limits.max_model_len,
            block_size=self._options.block_size,
            num_blocks=self._options.num_blocks,
            eos_token_ids=spec.eos_token_ids,
            knobs={
                "attention_backend": self._options.attention_backend,
                "torch": str(torch.__version__),
            },
        )

    def capabilities(self) -> Capabilities:
        if self._device.type == "cuda":
            return Capabilities.of((*FLAGS, *_INVARIANT), _OTHERS)
        return Capabilities.of(FLAGS, _OTHERS | dict.fromkeys(_INVARIANT, no(_BY_SIZE)))

    def open(self, config: SessionConfig) -> OwnSession:
        """Raises SessionRefused where the model, or this machine, cannot be run so."""
        if config.outputs:
            raise SessionRefused("outputs: give requests trace_decode_token_ids instead")
        if config.model is not None and config.vocab_size is not None:
            raise SessionRefused("a checkpoint has its own vocab_size; give one of the two")
        path = config.model or self._path(config.vocab_size)
        try:
            return self._session(path, config)
        except ConfigError as error:
            raise SessionRefused(str(error)) from None

    def attend(
        self,
        spans: Sequence[Span],
        *,
        block_size: int,
        scale: float,
        sliding_window: int,
        poison: float,
        placement_seed: int,
    ) -> Tensor:
        """By the attention backend that a model of the spans' shape would get on this device."""
        spec = spec_of(spans, block_size=block_size, device_type=self._device.type)
        return attend(
            type(resolve_backend(self._options.attention_backend, spec)),
            spans,
            block_size=block_size,
            scale=scale,
            sliding_window=sliding_window,
            poison=poison,
            placement_seed=placement_seed,
            device=self._device,
        )

    def close(self) -> None:
        self._loaded.clear()
        self._folder.cleanup()

    def _session(self, path: str, config: SessionConfig) -> OwnSession:
        loaded = self._loaded_model(path)
        history = HistoryWriter(keep=True, with_block_tables=True)
        strikes = Strikes(config.fault, config.failing_requests)
        engine_config = EngineConfig(
            model=msgspec.structs.replace(self._model_config(path), seed=config.seed),
            cache=config.cache or self._cache_config(path),
            scheduler=config.scheduler or self._scheduler_config(path),
            attention_backend=self._options.attention_backend,
            device=_device(self._options.device),
            max_logprobs=loaded.spec.vocab_size,
            debug_invariants=True,
        )
        runner = build_runner(engine_config, loaded)
        suffers = config.fault is not None or bool(config.failing_requests)
        executor = under_fault(runner, strikes) if suffers else runner
        runner.warm_up()
        engine = LLMEngine(
            engine_config,
            executor,
            vocab_size=loaded.spec.vocab_size,
            tokenizer=self._tokenizer(path, loaded) if config.with_text else None,
            eos_token_ids=loaded.spec.eos_token_ids,
            history=history,
            clock=strikes.clock(time.monotonic),
        )
        if config.fault is None:
            return MemoryOwnSession(self.describe(), engine, history, runner.kv_cache)
        batch = runner.batch
        return FaultyOwnSession(
            self.describe(),
            engine,
            history,
            strikes,
            lambda: len(batch.contents()) + len(batch.request_ids),
        )

    def _path(self, vocab_size: int | None) -> str:
        """Where the model is; a random one is written when it is first asked for."""
        if self._model != RANDOM:
            return self._model
        wanted = self._options.random_model(vocab_size)
        folder = Path(self._folder.name) / f"vocab-{wanted.vocab_size}"
        if not folder.exists():
            write_random_checkpoint(wanted, folder)
        return str(folder)

    def _loaded_model(self, path: str) -> LoadedModel:
        if path not in self._loaded:
            self._loaded[path] = load_model(self._model_config(path), self._device)
        return self._loaded[path]

    def _model_config(self, path: str) -> ModelConfig:
        """A checkpoint that a session brings keeps its dtype: its reference has it, too."""
        is_own = path == self._model or self._is_random(path)
        dtype: DType = self._options.dtype if is_own else "auto"
        return ModelConfig(model=path, skip_tokenizer=True, dtype=dtype)

    def _tokenizer(self, path: str, loaded: LoadedModel) -> Tokenizer:
        """The one beside the model; a random model gets a tiny one."""
        if self._is_random(path):
            return TinyTokenizer.of_size(loaded.spec.vocab_size)
        try:
            return load_tokenizer(loaded.folder, vocab_size=loaded.spec.vocab_size)
        except ModelError as error:
            raise SessionRefused(f"with_text: {error}") from None

    def _is_random(self, path: str) -> bool:
        return self._model == RANDOM and Path(self._folder.name) in Path(path).parents

    def _cache_config(self, path: str) -> CacheConfig:
        options = self._options
        return CacheConfig(
            num_blocks=options.num_blocks,
            block_size=options.block_size,
            num_host_blocks=options.num_host_blocks,
            sliding_window=cache_sliding_window(self._loaded_model(path).spec),
        )

    def _scheduler_config(self, path: str) -> SchedulerConfig:
        options = self._options
        longest = min(options.max_model_len, self._loaded_model(path).spec.max_model_len)
        return SchedulerConfig(
            max_model_len=longest,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            wait_for_prefix=True,
        )


def _device(name: str) -> Any:
    if name not in ("auto", "cpu", "cuda"):
        raise AdapterError(f"device={name!r} is unknown; there are auto, cpu, cuda")
    return name


def make(target: str, options: Mapping[str, Any]) -> OwnAdapter:
    """Raises AdapterError on options that do not exist, ModelError if the model cannot be read."""
    if not target:
        raise AdapterError(
            "'pagetwin:' names no model; write pagetwin:random, or pagetwin:NAME_OR_FOLDER"
        )
    return OwnAdapter(target, read_options("pagetwin:", options, Options))
