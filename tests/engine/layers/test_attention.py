"""What a layer's attention writes to its cache and asks of the backend."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata, ForwardContext
from pagetwin.engine.layers.attention import Attention
from pagetwin.engine.layers.linear import NewParameter
from pagetwin.engine.layers.norm import RMSNorm
from pagetwin.kernels import reference_layers

HEADS, KV_HEADS, SIZE, TOKENS = 4, 2, 8, 3


class Recorder(AttentionBackend):
    """Answers with the queries themselves."""

    name = "recorder"

    @classmethod
    def rejection(cls, spec: AttentionSpec) -> str | None:
        return None

    def forward(
        self, q: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, **options: Any
    ) -> Tensor:
        self.asked = q.clone(), kv_cache, metadata, options
        return q.clone()


@pytest.mark.parametrize("has_norm", [False, True])
def test_heads_are_prepared_and_cached_and_the_backend_sees_its_layer(has_norm: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    norms: list[RMSNorm | None] = [None, None]
    weights: list[Tensor | None] = [None, None]
    for i in range(2) if has_norm else ():
        norms[i] = norm = RMSNorm(SIZE, 1e-6, NewParameter(torch.float32, torch.device("cpu")))
        weights[i] = norm.weight.copy_(torch.randn(SIZE, generator=generator))
    options: dict[str, Any] = {"scale": 0.5, "sliding_window": 7}
    layer = Attention(1, HEADS, SIZE, q_norm=norms[0], k_norm=norms[1], **options)
    qkv = torch.randn(TOKENS, (HEADS + 2 * KV_HEADS) * SIZE, generator=generator)
    table = torch.randn(20, SIZE, generator=generator)
    positions = torch.tensor([3, 19, 0])
    caches = torch.zeros(2, 2, 3, 4, KV_HEADS, SIZE)
    slots = torch.tensor([5, -1, 11])
    metadata = AttentionMetadata(
        slot_mapping=slots,
        query_start_loc=torch.tensor([0, 3], dtype=torch.int32),
        seq_lens=torch.tensor([3], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        table_rows=torch.zeros(1, dtype=torch.int32),
        max_query_len=3,
        max_seq_len=3,
    )
    backend = Recorder(
        AttentionSpec(
            head_size=SIZE,
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            dtype=torch.float32,
            block_size=4,
        )
    )
    expected, expected_cache = qkv.clone(), caches[1].clone()
    reference_layers.qk_norm_rope_write(
        expected, weights[0], weights[1], 1e-6, table, positions, expected_cache, slots
    )
    out = layer(qkv, table, positions, ForwardContext(backend, metadata, list(caches)))
    q, kv_cache, asked_metadata, asked_options = backend.asked
    assert torch.equal(out, expected[:, : HEADS * SIZE])
    assert torch.equal(q.flatten(1), out)
    assert torch.equal(kv_cache, expected_cache)
    assert kv_cache.data_ptr() == caches[1].data_ptr()
    assert not caches[0].any()
    assert asked_metadata is metadata
    assert asked_options == options
