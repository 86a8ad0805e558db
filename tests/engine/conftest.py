"""Fixtures of the engine's tests: small engines over the fingerprint executor."""

from collections.abc import Callable
from typing import Any

import pytest

from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.core import EngineCore
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

CACHE_KNOBS = set(CacheConfig.__struct_fields__)


@pytest.fixture
def make_core() -> Callable[..., EngineCore]:
    """An EngineCore from knobs of either config; block size 4, 20 blocks, invariants checked."""

    def make(**knobs: Any) -> EngineCore:
        processor = knobs.pop("processor", None)
        vocab_size = knobs.pop("vocab_size", 5)
        cache: dict[str, Any] = {"num_blocks": 20, "block_size": 4}
        scheduler: dict[str, Any] = {
            "max_model_len": 64,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
        }
        for knob, value in knobs.items():
            (cache if knob in CACHE_KNOBS else scheduler)[knob] = value
        config = EngineConfig(
            cache=CacheConfig(**cache),
            scheduler=SchedulerConfig(**scheduler),
            debug_invariants=True,
        )
        executor = FingerprintExecutor(config.cache, vocab_size=vocab_size)
        return EngineCore(config, executor, processor=processor)

    return make


@pytest.fixture
def make_request() -> Callable[..., Request]:
    """A Request from its id, its prompt (token ids or a length) and sampling parameters."""

    def make(request_id: str, prompt: int | list[int], **knobs: Any) -> Request:
        fields = {name: knobs.pop(name) for name in Request.__struct_fields__ if name in knobs}
        tokens = [1] * prompt if isinstance(prompt, int) else prompt
        return Request(
            request_id=request_id,
            prompt_token_ids=tuple(tokens),
            sampling_params=SamplingParams(**{"max_tokens": 4} | knobs),
            **fields,
        )

    return make
