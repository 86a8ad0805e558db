"""Hypothesis profiles, tests that need a GPU where there is none, histories of known times.

Profiles are `default`, and `thorough` for long searches.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.trace import HeaderRecord, HistoryWriter
from pagetwin.simulator.cost_model import CostModel, LinearCostModel
from pagetwin.simulator.one_replica import simulate_replica

_SLOW_GENERATORS = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "default",
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=_SLOW_GENERATORS,
)
settings.register_profile(
    "thorough", max_examples=2000, deadline=None, suppress_health_check=_SLOW_GENERATORS
)
settings.load_profile("default")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skips, with the reason, what a machine without a GPU cannot run."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        import torch

        if not torch.cuda.is_available():
            reason = "needs a GPU: torch finds no CUDA device"
            for item in needing:
                item.add_marker(pytest.mark.skip(reason=reason))


HISTORY_MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
KNOWN_COSTS = LinearCostModel(
    constant_s=2e-3,
    per_prefill_token_s=20e-6,
    per_prefill_pair_s=40e-9,
    per_decode_sequence_s=30e-6,
    per_context_token_s=200e-9,
)

Write = Callable[..., Path]


def _requests(workload: str, count: int, rate: float, seed: int = 0) -> list[Request]:
    rng = random.Random(f"{workload} {seed}")
    arrival_s, some = 0.001, []
    for number in range(count):
        prompt = tuple(rng.randrange(1000) for _ in range(rng.randint(4, 120)))
        params = SamplingParams(temperature=0.0, max_tokens=rng.randint(1, 60), ignore_eos=True)
        some.append(
            Request(
                request_id=f"{workload}/0/{number:04d}",
                prompt_token_ids=prompt,
                sampling_params=params,
                arrival_s=arrival_s,
            )
        )
        arrival_s += rng.expovariate(rate)
    return some


@pytest.fixture
def write_history(tmp_path: Path) -> Write:
    """Simulates a workload and writes its history; fields of the header may be changed."""

    def write(
        name: str = "steady",
        *,
        count: int = 60,
        rate: float = 8.0,
        costs: CostModel = KNOWN_COSTS,
        num_blocks: int = 200,
        max_num_seqs: int = 16,
        **header: object,
    ) -> Path:
        cache = CacheConfig(num_blocks=num_blocks, block_size=8)
        scheduler = SchedulerConfig(
            max_model_len=256, max_num_seqs=max_num_seqs, max_num_batched_tokens=64
        )
        history = HistoryWriter(keep=True)
        simulate_replica(
            _requests(name, count, rate),
            cache=cache,
            scheduler=scheduler,
            cost_model=costs,
            history=history,
        )
        first = history.records[0]
        assert isinstance(first, HeaderRecord)
        fields = {
            "model": "models/tiny",
            "device": "cpu",
            "dtype": "float32",
            "model_config": HISTORY_MODEL,
            "versions": {"pagetwin": "1.0", "sources": "ab" * 32},
            **header,
        }
        path = tmp_path / f"{name}.jsonl"
        with HistoryWriter(path) as writer:
            writer.write(msgspec.structs.replace(first, **fields))
            for record in history.records[1:]:
                writer.write(record)
        return path

    return write
