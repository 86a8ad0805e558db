"""Decides what a configuration runs on: device, attention backend, KV memory, runner."""

import msgspec
import torch

from pagetwin.engine.attention.backend import AttentionSpec
from pagetwin.engine.attention.registry import resolve_backend
from pagetwin.engine.config import EngineConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.kv_cache import KVCache, KVCacheLayout
from pagetwin.engine.model_runner import ModelRunner
from pagetwin.engine.models.loader import LoadedModel, load_model
from pagetwin.engine.models.spec import ModelSpec
from pagetwin.engine.sampler import Sampler


def build_model_runner(config: EngineConfig) -> tuple[ModelRunner, LoadedModel]:
    """Loads the configured model and makes its executor.

    Raises ConfigError if the configuration names no model or asks for what the model or this
    machine cannot do, ModelError if the model cannot be read.
    """
    if config.model is None:
        raise ConfigError("model is not set; name the model that the engine is to run")
    loaded = load_model(config.model, resolve_device(config.device))
    return build_runner(config, loaded), loaded


def build_runner(config: EngineConfig, loaded: LoadedModel) -> ModelRunner:
    """The executor of a loaded model. Raises ConfigError where the two do not fit together."""
    spec, cache = loaded.spec, config.cache
    check_against_model(config, spec)
    device = resolve_device(config.device)
    attention = AttentionSpec(
        head_size=spec.head_size,
        num_heads=spec.num_attention_heads,
        num_kv_heads=spec.num_kv_heads,
        dtype=spec.dtype,
        block_size=cache.block_size,
        device_type=device.type,
        sliding_windows=spec.sliding_windows,
    )
    layout = KVCacheLayout(
        num_layers=spec.num_layers,
        block_size=cache.block_size,
        num_kv_heads=spec.num_kv_heads,
        head_size=spec.head_size,
        dtype=spec.dtype,
    )
    # Imported where there is a GPU, so that a CPU needs no Triton.
    runner_class = ModelRunner
    if device.type == "cuda":
        from pagetwin.engine.gpu_runner import GpuRunner

        runner_class = GpuRunner
    return runner_class(
        loaded,
        resolve_backend(config.attention_backend, attention),
        config,
        kv_cache=KVCache(layout, cache.num_blocks, cache.num_host_blocks, device=device),
        sampler=Sampler(spec.vocab_size, seed=config.model.seed if config.model else 0),
    )


def measured_kv_bytes(config: EngineConfig, loaded: LoadedModel, utilization: float) -> int:
    """Bytes for KV blocks on this GPU; `config` has a pool of any size, which is not made.

    Raises ConfigError if there is no memory for them.
    """
    from pagetwin.engine.gpu_memory import kv_cache_bytes
    from pagetwin.engine.gpu_runner import GpuRunner

    few = 2 + -(-config.scheduler.num_lookahead_slots // config.cache.block_size)
    cache = msgspec.structs.replace(
        config.cache, num_blocks=few, num_host_blocks=0, watermark_blocks=0
    )
    runner = build_runner(msgspec.structs.replace(config, cache=cache), loaded)
    assert isinstance(runner, GpuRunner)
    return kv_cache_bytes(runner, config, utilization)


def check_against_model(config: EngineConfig, spec: ModelSpec) -> None:
    """Raises ConfigError, naming the knob, where a setting does not fit the model."""
    max_model_len = config.scheduler.max_model_len
    if max_model_len > spec.max_model_len:
        raise ConfigError(
            f"scheduler.max_model_len={max_model_len} is above the {spec.max_model_len} tokens "
            "that the model was made for; lower it"
        )
    window, largest = config.cache.sliding_window, cache_sliding_window(spec)
    if window not in (0, largest):
        allowed = f"0 or {largest}" if largest else "0: some layer of the model sees all tokens"
        raise ConfigError(f"cache.sliding_window={window} does not fit the model; use {allowed}")
    dtype = str(spec.dtype).removeprefix("torch.")
    if config.cache.kv_cache_dtype not in ("auto", dtype):
        raise ConfigError(
            f"cache.kv_cache_dtype={config.cache.kv_cache_dtype!r} is not the model's dtype; use "
            f"'auto' or {dtype!r}"
        )


def cache_sliding_window(spec: ModelSpec) -> int:
    """The value for CacheConfig.sliding_window that frees blocks soonest (P4.7): the largest
    window, in tokens, if every layer has one, else 0."""
    return max(spec.sliding_windows, default=0) if all(spec.sliding_windows) else 0


def resolve_device(name: str) -> torch.device:
    """The device of EngineConfig.device; "auto" is the first GPU if there is one, else the CPU.

    Raises ConfigError if a GPU is asked for and torch finds none.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ConfigError(
            "device='cuda', but torch finds no CUDA device; use device='cpu' or 'auto', or "
            "install a CUDA build of torch and a driver"
        )
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")
