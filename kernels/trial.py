"""Makes paged batches to try attention on: known sequences in a hostile pool."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pagetwin.kernels.reference import AttentionResult, dense_attention


class TrialSequence(NamedTuple):
    """Queries [length, num_heads, head_size]; keys and values [length, num_kv_heads, head_size]."""

    q: Tensor
    k: Tensor
    v: Tensor


class Span(NamedTuple):
    """The rows that a sequence has in the batch: its positions [start, end)."""

    sequence: TrialSequence
    start: int
    end: int


@dataclass(frozen=True)
class PagedBatch:
    """The inputs of one attention call. Shapes are those of the kernels and of the backends.

    The cache holds keys and values of the positions before each span that the span can see, and
    poison everywhere else: in the slots that the batch is to write, in free blocks, in tails, and
    in the null block, which stands for blocks wholly before the window.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    kv_cache: Tensor
    slot_mapping: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    max_query_len: int
    max_seq_len: int

    def to(self, device: torch.device) -> "PagedBatch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def make_sequence(
    length: int,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> TrialSequence:
    """Standard normal queries, keys and values."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int) -> Tensor:
        return torch.randn(length, heads, head_size, generator=generator).to(dtype)

    return TrialSequence(draw(num_heads), draw(num_kv_heads), draw(num_kv_heads))


def make_batch(
    spans: Sequence[Span],
    *,
    block_size: int,
    sliding_window: int = 0,
    poison: float = torch.nan,
    placement_seed: int = 0,
    num_spare_blocks: int = 3,
) -> PagedBatch:
    """Lays the spans out in a pool, in blocks drawn by `placement_seed`."""
    counts = [-(-span.end // block_size) for span in spans]
    num_blocks = 1 + sum(counts) + num_spare_blocks
    generator = torch.Generator().manual_seed(placement_seed)
    shuffled = 1 + torch.randperm(num_blocks - 1, generator=generator)
    free = torch.split(shuffled, [*counts, num_spare_blocks])
    k = spans[0].sequence.k
    kv_cache = k.new_full((2, num_blocks, block_size, *k.shape[1:]), poison)
    block_tables = torch.zeros(len(spans), max(counts) + 1, dtype=torch.int32)
    slot_mapping = []
    for row, span, blocks in zip(block_tables, spans, free, strict=False):
        oldest = max(0, span.start - sliding_window + 1) if sliding_window else 0
        dead = oldest // block_size
        row[dead : len(blocks)] = blocks[dead:]
        positions = torch.arange(span.end)
        slots = blocks[positions // block_size] * block_size + positions % block_size
        slot_mapping.append(slots[span.start :])
        known = slice(oldest, span.start)
        for side, values in zip(kv_cache, span.sequence[1:], strict=True):
            side.view(-1, *k.shape[1:])[slots[known]] = values[known]
    num_rows = [span.end - span.start for span in spans]
    return PagedBatch(
        q=torch.cat([sequence.q[start:end] for sequence, start, end in spans]),
        k=torch.cat([sequence.k[start:end] for sequence, start, end in spans]),
        v=torch.cat([sequence.v[start:end] for sequence, start, end in spans]),
        kv_cache=kv_cache,
        slot_mapping=torch.cat(slot_mapping),
        query_start_loc=torch.tensor([0, *num_rows]).cumsum(0).int(),
        seq_lens=torch.tensor([span.end for span in spans], dtype=torch.int32),
        block_tables=block_tables,
        max_query_len=max(num_rows),
        max_seq_len=max(span.end for span in spans),
    )


def exact_attention(spans: Sequence[Span], *, scale: float, **options: Any) -> AttentionResult:
    """What attention over the batch of these spans is, in float64; options of dense_attention."""
    results = [
        dense_attention(
            sequence.q[start:end], sequence.k[:end], sequence.v[:end], scale=scale, **options
        )
        for sequence, start, end in spans
    ]
    fields = ("out", "lse", "weighted_values", "score_magnitude", "num_keys")
    return AttentionResult(
        **{name: torch.cat([getattr(result, name) for result in results]) for name in fields}
    )
