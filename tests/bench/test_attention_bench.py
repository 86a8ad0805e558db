"""Speed of one attention layer, shaped like SmolLM2-135M, on the CPU.

    pytest tests/bench/test_attention_bench.py --benchmark-enable --benchmark-only

Beside the paged backend stands torch's fused attention over dense tensors: what paging costs.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pagetwin.engine.attention.backend import AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata
from pagetwin.engine.attention.tiles import TilePlanner
from pagetwin.engine.attention.torch_backend import TorchBackend
from pagetwin.engine.kv_cache import KVCache, KVCacheLayout
from pagetwin.engine.step import BlockCopy, StepPlan
from pagetwin.kernels.reference import write_kv
from pagetwin.kernels.trial import PagedBatch, Span, make_batch, make_sequence

HEADS: dict[str, Any] = {"num_heads": 9, "num_kv_heads": 3, "head_size": 64}
STEPS: dict[str, list[tuple[int, int]]] = {
    "decode 1 x 100": [(99, 100)],
    "decode 1 x 1000": [(999, 1000)],
    "decode 32 x 128": [(127, 128)] * 32,
    "decode 32 x 512": [(511, 512)] * 32,
    "prefill 512": [(0, 512)],
    "prefill 2000": [(0, 2000)],
    "chunk 256 of 2000": [(1744, 2000)],
    "mixed 31 decode, 1 chunk": [(511, 512)] * 31 + [(256, 512)],
}


def step(name: str) -> tuple[PagedBatch, AttentionMetadata]:
    batch = make_batch(
        [Span(make_sequence(end, **HEADS), start, end) for start, end in STEPS[name]],
        block_size=16,
        poison=0.0,
    )
    metadata = AttentionMetadata(
        slot_mapping=batch.slot_mapping,
        query_start_loc=batch.query_start_loc,
        seq_lens=batch.seq_lens,
        block_tables=batch.block_tables,
        table_rows=torch.arange(len(batch.seq_lens), dtype=torch.int32),
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_seq_len,
    )
    return batch, metadata


@pytest.mark.parametrize("name", STEPS)
def test_layer(benchmark: Any, name: str) -> None:
    batch, metadata = step(name)
    backend = TorchBackend(AttentionSpec(**HEADS, dtype=torch.float32, block_size=16))

    def layer() -> Tensor:
        write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
        return backend.forward(batch.q, batch.kv_cache, metadata, scale=0.125)

    out = benchmark(layer)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", STEPS)
def test_plan_of_a_step(benchmark: Any, name: str) -> None:
    """Once a step, whatever the number of layers."""
    _, metadata = step(name)
    benchmark(lambda: TilePlanner(metadata, 16, torch.float32, 0).plan())


@pytest.mark.parametrize("name", ["decode 32 x 512", "prefill 512", "prefill 2000"])
def test_dense_attention_of_torch(benchmark: Any, name: str) -> None:
    start, end = STEPS[name][0]
    shape = len(STEPS[name]), HEADS["num_heads"], end, HEADS["head_size"]
    q, k, v = torch.randn(3, *shape)
    attend = functional.scaled_dot_product_attention
    benchmark(lambda: attend(q[:, :, start:], k, v, is_causal=start == 0))


@pytest.mark.parametrize("num_blocks", [1, 64])
def test_copies(benchmark: Any, num_blocks: int) -> None:
    layout = KVCacheLayout(
        num_layers=30, block_size=16, num_kv_heads=3, head_size=64, dtype=torch.float32
    )
    cache = KVCache(layout, 2 * num_blocks, device=torch.device("cpu"))
    copies = tuple(BlockCopy(i, num_blocks + i) for i in range(num_blocks))
    benchmark(cache.apply, StepPlan(step=0, copies=copies))
