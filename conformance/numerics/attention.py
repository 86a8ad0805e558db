"""An attention backend on its own: a hostile paged batch in, outputs and their error bound out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata
from pagetwin.kernels.reference import write_kv
from pagetwin.kernels.trial import PagedBatch, Span, exact_attention, make_batch

_CPU = torch.device("cpu")


def spec_of(
    spans: Sequence[Span], *, block_size: int, soft_cap: float = 0.0, device_type: str = "cpu"
) -> AttentionSpec:
    """What a model with sequences of this shape asks of a backend."""
    q, k, _ = spans[0].sequence
    return AttentionSpec(
        head_size=q.shape[2],
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        dtype=q.dtype,
        block_size=block_size,
        device_type=device_type,
        soft_cap=soft_cap,
    )


def forward(
    backend: AttentionBackend, batch: PagedBatch, *, scale: float = 0.125, sliding_window: int = 0
) -> Tensor:
    """Writes the batch's keys and values as a model's layer does, and attends: the shape of q."""
    # Tables stand in other rows than the sequences' own, among tables of nobody.
    num_seqs = len(batch.seq_lens)
    table_rows = torch.arange(2 * num_seqs - 1, -1, -2, device=batch.q.device)
    block_tables = batch.block_tables.new_zeros((2 * num_seqs, batch.block_tables.shape[1]))
    block_tables[table_rows] = batch.block_tables
    metadata = AttentionMetadata(
        slot_mapping=batch.slot_mapping,
        query_start_loc=batch.query_start_loc,
        seq_lens=batch.seq_lens,
        block_tables=block_tables,
        table_rows=table_rows.int(),
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_seq_len,
    )
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    return backend.forward(
        batch.q, batch.kv_cache, metadata, scale=scale, sliding_window=sliding_window
    )


def attend(
    backend_class: type[AttentionBackend],
    spans: Sequence[Span],
    *,
    block_size: int = 16,
    scale: float = 0.125,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    poison: float = torch.nan,
    placement_seed: int = 0,
    device: torch.device = _CPU,
) -> Tensor:
    """A backend's output for spans that are laid out anew, poison wherever nothing is theirs.

    It runs on `device`; the output comes back to the CPU.
    """
    batch = make_batch(
        spans,
        block_size=block_size,
        sliding_window=sliding_window,
        poison=poison,
        placement_seed=placement_seed,
    )
    spec = spec_of(spans, block_size=block_size, soft_cap=soft_cap, device_type=device.type)
    out = forward(backend_class(spec), batch.to(device), scale=scale, sliding_window=sliding_window)
    return out.cpu()


def used_of_bound(
    out: Tensor,
    spans: Sequence[Span],
    *,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
) -> float:
    """Largest |error| of an output element over its own bound; above 1 is a failure, and so is
    the infinity that stands for an output that is no number.

    The bound is that of kernels/reference.py, for scores and sums in float32.
    """
    exact = exact_attention(spans, scale=scale, sliding_window=sliding_window, soft_cap=soft_cap)
    bound = exact.error_bound(
        accumulate=torch.float32, store=out.dtype, head_size=out.shape[-1], soft_cap=soft_cap
    )
    ratio = (out.double() - exact.out).abs() / bound
    return float(ratio.nan_to_num(nan=torch.inf).max())
