"""Every knob's range: a value outside is refused by a message that names knob, value and remedy."""

from typing import Any

import pytest

from pagetwin.engine.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError

CACHE = {"num_blocks": 10}
SCHEDULER = {"max_model_len": 100}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"num_blocks": -3}, r"cache\.num_blocks=-3 is below 2; block 0 is the null block"),
        ({"num_blocks": 1}, r"cache\.num_blocks=1 is below 2"),
        ({"block_size": 0}, r"cache\.block_size=0 is below 1; use 16"),
        ({"num_host_blocks": -1}, r"cache\.num_host_blocks=-1 is negative; use 0"),
        ({"watermark_blocks": -1}, r"cache\.watermark_blocks=-1 is outside 0\.\.8"),
        ({"watermark_blocks": 9}, r"cache\.watermark_blocks=9 is outside 0\.\.8; keep it below"),
        ({"sliding_window": -1}, r"cache\.sliding_window=-1 is negative; use 0"),
    ],
)
def test_a_cache_knob_out_of_range_is_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CacheConfig(**(CACHE | knobs))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"max_model_len": 0}, r"scheduler\.max_model_len=0 is below 1"),
        ({"max_model_len": 1}, r"scheduler\.max_model_len=1 is below 2; a sequence needs"),
        ({"max_num_seqs": 0}, r"scheduler\.max_num_seqs=0 is below 1"),
        ({"max_num_batched_tokens": 0}, r"scheduler\.max_num_batched_tokens=0 is below 1"),
        (
            {"max_num_seqs": 9, "max_num_batched_tokens": 8},
            r"max_num_batched_tokens=8 is below max_num_seqs=9; raise it, or lower max_num_seqs",
        ),
        (
            {"max_num_seqs": 8, "max_num_batched_tokens": 99, "enable_chunked_prefill": False},
            r"max_num_batched_tokens=99 is below max_model_len=100 without chunked prefill",
        ),
        (
            {"enable_chunked_prefill": False, "long_prefill_token_threshold": 4},
            r"long_prefill_token_threshold=4 has no meaning without chunked prefill",
        ),
        ({"long_prefill_token_threshold": -1}, r"threshold=-1 is negative; use 0"),
        ({"long_prefill_token_threshold": 101}, r"threshold=101 is above max_model_len=100"),
        ({"num_lookahead_slots": -1}, r"num_lookahead_slots=-1 is negative; use 0"),
        ({"policy": ""}, r"scheduler\.policy='' is empty; use fcfs or priority"),
    ],
)
def test_a_scheduler_knob_out_of_range_is_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SchedulerConfig(**(SCHEDULER | knobs))


@pytest.mark.parametrize(
    ("cache", "scheduler", "knobs", "message"),
    [
        ({}, {}, {"max_logprobs": -1}, r"max_logprobs=-1 is negative; use 0"),
        (
            {"num_blocks": 2, "block_size": 1},
            {},
            {},
            r"cache\.num_blocks=2 holds 1 tokens, too few for one prompt token",
        ),
        (
            {"num_blocks": 2, "block_size": 4},
            {"num_lookahead_slots": 4},
            {},
            r"num_lookahead_slots=4; raise num_blocks or block_size",
        ),
    ],
)
def test_knobs_that_do_not_go_together_are_refused(
    cache: dict[str, Any], scheduler: dict[str, Any], knobs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(
            cache=CacheConfig(**(CACHE | cache)),
            scheduler=SchedulerConfig(**(SCHEDULER | scheduler)),
            **knobs,
        )


def test_a_model_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.model='' is empty; name a model"):
        ModelConfig(model="")


def test_the_tree_is_frozen() -> None:
    config = CacheConfig(num_blocks=10)
    with pytest.raises(AttributeError, match="immutable"):
        config.num_blocks = 11  # type: ignore[misc]
