"""`hfcb:PATH`: transformers' continuous batching, stepped by hand in one thread."""

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from transformers.generation.configuration_utils import ContinuousBatchingConfig, GenerationConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pagetwin.conformance.adapters.foreign import ForeignRun, check_knobs
from pagetwin.conformance.adapters.options import read_options
from pagetwin.conformance.adapters.protocol import (
    AdapterError,
    EngineCrashed,
    EngineInfo,
    EngineTimeout,
    SessionConfig,
)
from pagetwin.conformance.adapters.transformers_trace import BatchTrace
from pagetwin.conformance.adapters.watchdog import Deadline
from pagetwin.conformance.capability import Capabilities, Flag, Support, conditional, no
from pagetwin.conformance.observation import AnyObservation
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.trace import Record

NAME = "transformers-continuous-batching"
DEFAULT_CACHE = CacheConfig(num_blocks=129, block_size=16)
DEFAULT_SCHEDULER = SchedulerConfig(max_model_len=2048, max_num_batched_tokens=256)

FLAGS = (
    Flag.TOKEN_IDS,
    Flag.TOKEN_PROMPT,
    Flag.CANCEL,
    Flag.IGNORE_EOS,
    Flag.STOP_TOKENS,
    Flag.CHOSEN_LOGPROB,
    Flag.CACHED_TOKEN_COUNT,
    Flag.PREFIX_CACHE,
    Flag.STEP_TRACE,
    Flag.CHECKPOINT,
)
_OF_THE_ENGINE = no("sampling parameters belong to the engine, not to a request; it runs greedy")
OTHERS: dict[Flag, Support] = {
    Flag.BLOCK_TABLES: conditional("models whose layers all have full attention"),
    Flag.TEXT: no("the adapter works with token ids"),
    Flag.STOP_STRINGS: no("the adapter works with token ids"),
    Flag.TEMPERATURE: _OF_THE_ENGINE,
    Flag.PENALTIES: _OF_THE_ENGINE,
    Flag.SEED: _OF_THE_ENGINE,
    Flag.SAMPLES: no("the number of samples belongs to the engine, not to a request"),
    Flag.PRIORITY: no("its schedulers know no priorities"),
    Flag.CACHE_SALT: no("its block hashes have no salt"),
    Flag.TOPK_LOGPROB: no("it returns the chosen token's log-probability only"),
    Flag.PROMPT_LOGPROBS: no("it returns the chosen token's log-probability only"),
    Flag.SCORE: no("it returns the chosen token's log-probability only"),
    Flag.COUNTERS: no("of the books, only free blocks are kept"),
    Flag.POLICY: no("it follows a policy of its own"),
    Flag.FORCE_PREEMPT: no("its scheduler has no call for it; a small pool makes it preempt"),
    Flag.RESET_CACHE: no("there is no call for it while the engine lives"),
}

CAPABILITIES = Capabilities.of(FLAGS, OTHERS)

SENT = ("ignore_eos", "seed")
"""Of the sampling parameters: a greedy request has no use for its seed."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What may stand behind `hfcb:PATH?`."""

    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto"
    """`auto`: the checkpoint's own."""
    attention: Literal["eager", "sdpa"] = "sdpa"
    scheduler: Literal["fifo", "prefill_first"] = "fifo"


def make(target: str, options: Mapping[str, Any]) -> "TransformersAdapter":
    """Raises AdapterError if PATH is no model folder, or on unknown options."""
    if not (Path(target) / "config.json").is_file():
        raise AdapterError(f"'hfcb:{target}' names no model folder; it must hold a config.json")
    return TransformersAdapter(target, read_options("hfcb:", options, Options))


class TransformersAdapter:
    """Loads a model once, and gives each session a cache and a scheduler of its own."""

    def __init__(self, path: str, options: Options) -> None:
        self._path = path
        self._options = options
        self._loaded: tuple[str, Any] | None = None

    def describe(self) -> EngineInfo:
        return self._info(self._path)

    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    def open(self, config: SessionConfig) -> "TransformersSession":
        """Raises SessionRefused for knobs that transformers has no equal of."""
        cache = config.cache or DEFAULT_CACHE
        limits = config.scheduler or DEFAULT_SCHEDULER
        path = config.model or self._path
        model = self._model(path)
        check_knobs(
            NAME,
            config,
            sliding_window=getattr(model.config, "sliding_window", None) or 0,
            vocab_size=model.config.vocab_size,
        )
        batching = ContinuousBatchingConfig(
            page_size=cache.block_size,
            num_blocks=cache.num_blocks - 1,
            max_batch_tokens=limits.max_num_batched_tokens,
            max_requests_per_batch=limits.max_num_seqs,
            allow_block_sharing=cache.enable_prefix_caching,
            scheduler_type=self._options.scheduler,
            safety_margin=cache.watermark_blocks / (cache.num_blocks - 1),
            use_async_batching=False,
            use_cuda_graph=False,
            return_logprobs=True,
            auto_switch_to_flash=False,
            seed=config.seed,
        )
        return TransformersSession(self._info(path), model, batching, cache, limits)

    def close(self) -> None:
        self._loaded = None

    def _info(self, path: str) -> EngineInfo:
        model = self._model(path)
        config = model.config
        return EngineInfo(
            name=NAME,
            version=version("transformers"),
            model=path,
            dtype=str(model.dtype).removeprefix("torch."),
            device="cpu",
            vocab_size=config.vocab_size,
            max_model_len=config.max_position_embeddings,
            knobs={"attention": self._options.attention, "scheduler": self._options.scheduler},
        )

    def _model(self, path: str) -> Any:
        if self._loaded is None or self._loaded[0] != path:
            factory: Any = AutoModelForCausalLM
            attention, dtype = self._options.attention, self._options.dtype
            model = factory.from_pretrained(
                path,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                attn_implementation="paged|eager" if attention == "eager" else attention,
            )
            self._loaded = (path, model)
        return self._loaded[1]


class TransformersSession:
    """One cache and scheduler; a RecordingSession."""

    def __init__(
        self,
        info: EngineInfo,
        model: Any,
        batching: ContinuousBatchingConfig,
        cache: CacheConfig,
        limits: SchedulerConfig,
    ) -> None:
        # Without an end-of-sequence token of the engine's own, a request's list is all there is.
        settings: Any = GenerationConfig
        generation = settings(do_sample=False, eos_token_id=-1)
        # It tells, each time, what a machine without psutil lacks.
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        self._manager = model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=batching
        )
        self._processor = self._manager._create_batch_processor()
        self._model = model
        self._run = ForeignRun(info, cache, limits)
        self._trace = BatchTrace(self._processor, self._run)

    def submit(self, request: Request, *, cancel_after: int | None = None) -> None:
        if self._run.refuses(request, CAPABILITIES, SENT):
            return
        params = request.sampling_params
        stops = [*params.stop_token_ids, *(() if params.ignore_eos else request.eos_token_ids)]
        self._manager.add_request(
            list(request.prompt_token_ids),
            request_id=request.request_id,
            max_new_tokens=self._run.max_tokens(request),
            eos_token_id=stops or None,
        )
        self._run.submitted(request, self._trace.counters(), cancel_after=cancel_after)
        self._hang_up()

    def cancel(self, request_id: str) -> None:
        """Takes effect before the next step, as transformers has it."""
        if self._run.is_live(request_id):
            self._manager.cancel_request(request_id)
            self._run.cancelled(request_id, self._trace.counters())

    def run(self, timeout_s: float) -> None:
        deadline = Deadline(timeout_s)
        while self._run.has_live_requests() or self._trace.has_pending():
            deadline.check(NAME)
            with torch.inference_mode():
                self._step()

    def observations(self) -> Sequence[AnyObservation]:
        return self._run.observations

    def records(self) -> Sequence[Record]:
        return self._run.records

    def close(self) -> None:
        self._processor.reset()

    def _step(self) -> None:
        self._trace.before_plan()
        try:
            planned = self._processor.prepare_next_batch()
        except RuntimeError as error:
            raise EngineCrashed(f"{NAME}: {error}") from error
        if not planned:
            if self._run.has_live_requests():
                raise EngineTimeout(f"{NAME}: requests live, and it plans no step")
            return
        batch = self._trace.planned()
        self._processor._generation_step(self._model)
        self._processor.update_batch()
        self._trace.closed(batch)
        self._hang_up()

    def _hang_up(self) -> None:
        for request_id in self._run.due_hang_ups():
            self.cancel(request_id)
