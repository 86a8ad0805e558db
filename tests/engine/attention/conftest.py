"""What the tests of attention backends share."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata
from pagetwin.engine.attention.torch_backend import TorchBackend
from pagetwin.kernels.reference import write_kv
from pagetwin.kernels.trial import PagedBatch, Span, make_batch


def _spec(spans: Sequence[Span], block_size: int, soft_cap: float) -> AttentionSpec:
    q, k, _ = spans[0].sequence
    return AttentionSpec(
        head_size=q.shape[2],
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        dtype=q.dtype,
        block_size=block_size,
        soft_cap=soft_cap,
    )


def _forward(
    backend: AttentionBackend, batch: PagedBatch, *, scale: float = 0.125, sliding_window: int = 0
) -> Tensor:
    metadata = AttentionMetadata(
        slot_mapping=batch.slot_mapping,
        query_start_loc=batch.query_start_loc,
        seq_lens=batch.seq_lens,
        block_tables=batch.block_tables,
        table_rows=torch.arange(len(batch.seq_lens), dtype=torch.int32),
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_seq_len,
    )
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    return backend.forward(
        batch.q, batch.kv_cache, metadata, scale=scale, sliding_window=sliding_window
    )


@pytest.fixture
def forward() -> Callable[..., Tensor]:
    """forward(backend, batch, *, scale, sliding_window): the backend's output for a PagedBatch."""
    return _forward


@pytest.fixture
def attend() -> Callable[..., Tensor]:
    """attend(spans, *, block_size=16, ...): TorchBackend's output for the spans, laid out anew."""

    def run(
        spans: Sequence[Span],
        *,
        block_size: int = 16,
        scale: float = 0.125,
        sliding_window: int = 0,
        soft_cap: float = 0.0,
        poison: float = torch.nan,
        placement_seed: int = 0,
    ) -> Tensor:
        batch = make_batch(
            spans,
            block_size=block_size,
            sliding_window=sliding_window,
            poison=poison,
            placement_seed=placement_seed,
        )
        backend = TorchBackend(_spec(spans, block_size, soft_cap))
        return _forward(backend, batch, scale=scale, sliding_window=sliding_window)

    return run
