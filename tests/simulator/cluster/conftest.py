"""Small clusters whose steps take half a second each, whatever is in them."""

from collections.abc import Callable
from typing import Any

import pytest

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.simulator.cluster.description import Pool
from pagetwin.simulator.cost_model import LinearCostModel

STEP_S = 0.5
MakePool = Callable[..., Pool]
"""Knobs of both configurations, and fields of the pool, by name."""


@pytest.fixture
def make_pool() -> MakePool:
    def make(**knobs: Any) -> Pool:
        cache: dict[str, Any] = {"num_blocks": 64, "block_size": 4}
        scheduler: dict[str, Any] = {"max_model_len": 64, "max_num_seqs": 4}
        fields: dict[str, Any] = {"cost_model": LinearCostModel(constant_s=STEP_S)}
        for name, value in knobs.items():
            if name in CacheConfig.__struct_fields__:
                cache[name] = value
            elif name in SchedulerConfig.__struct_fields__:
                scheduler[name] = value
            else:
                fields[name] = value
        return Pool(cache=CacheConfig(**cache), scheduler=SchedulerConfig(**scheduler), **fields)

    return make
