"""A configuration and a model that do not fit together are refused, with the knob's name."""

import msgspec
import pytest
import torch

from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.factory import (
    build_model_runner,
    cache_sliding_window,
    check_against_model,
    resolve_device,
)
from pagetwin.engine.models.spec import ModelSpec

CONFIG = EngineConfig(
    cache=CacheConfig(num_blocks=10), scheduler=SchedulerConfig(max_model_len=100)
)


def spec(*windows: int, max_model_len: int = 100) -> ModelSpec:
    return ModelSpec(
        num_layers=len(windows),
        num_attention_heads=2,
        num_kv_heads=1,
        head_size=8,
        vocab_size=16,
        max_model_len=max_model_len,
        sliding_windows=windows,
        eos_token_ids=(),
        dtype=torch.float16,
    )


def with_cache(**knobs: object) -> EngineConfig:
    return msgspec.structs.replace(CONFIG, cache=msgspec.structs.replace(CONFIG.cache, **knobs))


@pytest.mark.parametrize(
    ("windows", "expected"), [((0, 0), 0), ((8, 8), 8), ((8, 16), 16), ((8, 0), 0)]
)
def test_blocks_are_released_by_the_largest_window_if_every_layer_has_one(
    windows: tuple[int, ...], expected: int
) -> None:
    assert cache_sliding_window(spec(*windows)) == expected
    check_against_model(with_cache(sliding_window=expected), spec(*windows))
    check_against_model(with_cache(sliding_window=0), spec(*windows))


@pytest.mark.parametrize("windows", [(0, 0), (8, 16), (8, 0)])
def test_a_window_that_is_not_the_model_s_is_refused(windows: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"cache\.sliding_window=8 does not fit"):
        check_against_model(with_cache(sliding_window=8), spec(*windows))


def test_a_length_beyond_the_model_s_is_refused() -> None:
    check_against_model(CONFIG, spec(0, max_model_len=100))
    with pytest.raises(ConfigError, match=r"scheduler\.max_model_len=100 is above the 99 tokens"):
        check_against_model(CONFIG, spec(0, max_model_len=99))


def test_a_cache_of_another_dtype_than_the_model_s_is_refused() -> None:
    check_against_model(with_cache(kv_cache_dtype="float16"), spec(0))
    with pytest.raises(ConfigError, match=r"kv_cache_dtype='fp8'.*use 'auto' or 'float16'"):
        check_against_model(with_cache(kv_cache_dtype="fp8"), spec(0))


def test_a_configuration_without_a_model_builds_no_runner() -> None:
    with pytest.raises(ConfigError, match="model is not set"):
        build_model_runner(CONFIG)


def test_a_device_is_taken_as_asked_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolve_device(name).type for name in ("auto", "cuda", "cpu")] == [
        "cuda",
        "cuda",
        "cpu",
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [resolve_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(ConfigError, match="torch finds no CUDA device"):
        resolve_device("cuda")
