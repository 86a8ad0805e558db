"""The floors, against counting one token after the other."""

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.conformance.bench.work import ModelSizes, least_work, model_sizes
from pagetwin.conformance.bench.workloads import BenchRequest, Workload
from pagetwin.engine.config import ModelConfig
from pagetwin.engine.models.loader import load_model

SIZES = ModelSizes(
    num_layers=2,
    layer_matrix_parameters=1000,
    last_layer_parameters=300,
    head_parameters=100,
    weight_bytes=2200,
    kv_bytes_per_token=10,
    attention_flops_per_key=7,
)

requests = st.builds(
    BenchRequest, st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(1, 9)
)


def seen_keys(position: int, window: int) -> int:
    return min(position + 1, window) if window else position + 1


@given(st.lists(requests, min_size=1, max_size=5), st.sampled_from([0, 1, 3, 8]), st.integers(1, 4))
def test_without_a_prefix_cache_every_token_is_computed_and_every_key_read(
    workload: Workload, window: int, max_num_seqs: int
) -> None:
    work = least_work(
        workload,
        SIZES,
        sliding_windows=(window, 0),
        max_num_seqs=max_num_seqs,
        prefix_caching=False,
    )
    tokens = drawn = keys_computed = keys_read = 0
    for prompt, num_outputs in workload:
        for position in range(len(prompt) + num_outputs - 1):
            draws = position >= len(prompt) - 1
            tokens += 1
            drawn += draws
            keys_computed += seen_keys(position, window) + draws * seen_keys(position, 0)
            if position >= len(prompt):
                keys_read += seen_keys(position, window) + seen_keys(position, 0)
    outputs = [request.num_output_tokens for request in workload]
    assert drawn == sum(outputs)
    assert work.kv_bytes == int((tokens + keys_read / 2) * 10)
    assert work.attention_flops == keys_computed * 7
    assert work.matmul_flops == 2 * (tokens * 700 + drawn * (300 + 100))
    assert work.min_steps >= max(outputs)
    assert work.min_steps * max_num_seqs >= sum(outputs)
    assert work.weight_bytes == work.min_steps * 2200


def test_a_common_prefix_is_computed_once_and_read_once_a_step() -> None:
    workload = [BenchRequest([5] * 100 + [own], 3) for own in range(4)]
    work = least_work(workload, SIZES, sliding_windows=(0, 0), max_num_seqs=4, prefix_caching=True)
    tokens = 100 + 4 * (1 + 2)
    # Two steps decode; each reads the prefix, and of each sequence its own 2, then 3 keys.
    assert work.kv_bytes == (tokens + 2 * 100 + 4 * (2 + 3)) * 10
    assert work.matmul_flops == 2 * (tokens * 700 + 12 * (300 + 100))


@given(st.lists(requests, min_size=1, max_size=5))
def test_a_prefix_cache_never_adds_work(workload: Workload) -> None:
    with_cache, without = (
        least_work(workload, SIZES, sliding_windows=(0, 0), max_num_seqs=3, prefix_caching=on)
        for on in (True, False)
    )
    assert with_cache.flops <= without.flops
    assert with_cache.num_bytes <= without.num_bytes


def test_a_models_sizes_are_counted_from_its_weights(model_folder: Path) -> None:
    loaded = load_model(
        ModelConfig(model=str(model_folder), load_format="dummy", dtype="bfloat16"),
        torch.device("cpu"),
    )
    sizes = model_sizes(loaded)
    q, kv, hidden, inner = 4 * 16, 2 * 16, 32, 48
    matrices = 2 * (hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner)
    norms = 2 * (2 * hidden + 2 * 16) + hidden
    assert sizes.layer_matrix_parameters == matrices
    assert sizes.last_layer_parameters == 2 * q * hidden + 3 * hidden * inner
    assert sizes.head_parameters == 96 * hidden
    assert sizes.weight_bytes == 2 * (matrices + norms + 96 * hidden)
    assert sizes.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2  # K and V, layers, heads, size, bytes
    assert sizes.attention_flops_per_key == 4 * 4 * 16  # two products, heads, size
