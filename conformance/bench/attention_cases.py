"""Attention over a paged cache, on the batches that flash-attn 3 was measured on.

What is timed is a layer's call of the attention backend: whatever it launches to read the cache.
Blocks of 16 tokens lie in random order. Names are those of reports/baselines/peers.json.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from pagetwin.conformance.bench.case import Case, Source
from pagetwin.conformance.bench.timing import Launch
from pagetwin.engine.attention.backend import AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata
from pagetwin.engine.attention.registry import resolve_backend
from pagetwin.engine.step_inputs import StepInputs

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Batch:
    """Of each sequence, the rows that it has in the step and its keys, the rows' own included."""

    name: str
    num_rows: list[int]
    num_keys: list[int]
    num_heads: int = 32
    num_kv_heads: int = 8
    head_size: int = 128

    @property
    def num_bytes(self) -> int:
        """Keys and values of all sequences, queries in and results out, two bytes a number."""
        cached = sum(self.num_keys) * self.num_kv_heads
        return (cached + sum(self.num_rows) * self.num_heads) * self.head_size * 2 * 2

    @property
    def flops(self) -> int:
        """Of two products: a row sees the keys before the step, and those of the step up to it."""
        seen = sum(
            rows * (keys - rows) + rows * (rows + 1) // 2
            for rows, keys in zip(self.num_rows, self.num_keys, strict=True)
        )
        return 4 * self.num_heads * self.head_size * seen


def attention_batches() -> list[Batch]:
    """The peers' fifteen, in their order."""
    generator = torch.Generator().manual_seed(1)

    def mixed(count: int) -> list[int]:
        lengths: list[int] = torch.randint(64, 4096, (count,), generator=generator).tolist()
        return lengths

    decodes = [(1, 1024), (1, 8192), (1, 32768), (8, 4096), (32, 2048)]
    decodes += [(64, 1024), (128, 1024), (256, 1024), (32, 8192)]
    batches = [Batch(f"decode_b{b}_c{c}", [1] * b, [c] * b) for b, c in decodes]
    batches.append(Batch("decode_b128_mixed64-4096", [1] * 128, mixed(128)))
    prefills = [(8, 2048), (2, 8192), (1, 16384)]
    batches += [Batch(f"prefill_b{b}_s{s}", [s] * b, [s] * b) for b, s in prefills]
    batches.append(Batch("chunk_b4_q512_ctx4096", [512] * 4, [4608] * 4))
    both = Batch("mixed_64dec_2chunk", [1] * 64 + [512, 1024], [*mixed(64), 512, 2048])
    return [*batches, both]


def attention_cases(batches: Iterable[Batch]) -> Iterator[Case]:
    for batch in batches:
        yield Case(
            kernel="attention",
            shape=batch.name,
            rows=sum(batch.num_rows),
            num_bytes=batch.num_bytes,
            flops=batch.flops,
            make=partial(_make, batch),
            compared_with=batch.name,
        )


def _make(batch: Batch, source: Source) -> Launch:
    spec = AttentionSpec(
        head_size=batch.head_size,
        num_heads=batch.num_heads,
        num_kv_heads=batch.num_kv_heads,
        dtype=source.dtype,
        block_size=BLOCK_SIZE,
        device_type=source.device.type,
    )
    backend = resolve_backend("triton", spec)
    counts = [-(-keys // BLOCK_SIZE) for keys in batch.num_keys]
    num_blocks = 1 + sum(counts)
    cache = source.normal(2, num_blocks, BLOCK_SIZE, batch.num_kv_heads, batch.head_size)
    q = source.normal(sum(batch.num_rows), batch.num_heads, batch.head_size)
    block_tables = np.zeros((len(counts), max(counts)), np.int32)
    places = np.arange(max(counts)) < np.array(counts)[:, None]
    block_tables[places] = 1 + source.permutation(sum(counts)).cpu().numpy()

    inputs = _step_inputs(batch)
    # A decode step is replayed from a graph, and planned for one.
    is_graph = inputs.max_query_len == 1
    arrays = {
        "slot_mapping": inputs.slot_mapping,
        "query_start_loc": inputs.query_start_loc,
        "seq_lens": inputs.seq_lens,
        "block_tables": block_tables,
        "table_rows": inputs.rows,
    }
    planned = backend.plan(inputs, block_tables, is_graph=is_graph)
    views = {
        name: torch.from_numpy(array).to(source.device)
        for name, array in (arrays | planned).items()
    }
    metadata = AttentionMetadata(
        slot_mapping=views["slot_mapping"],
        query_start_loc=views["query_start_loc"],
        seq_lens=views["seq_lens"],
        block_tables=views["block_tables"],
        table_rows=views["table_rows"],
        max_query_len=inputs.max_query_len,
        max_seq_len=inputs.max_seq_len,
        **backend.work(views, is_graph=is_graph),
    )
    return lambda: backend.forward(q, cache, metadata, scale=batch.head_size**-0.5)


def _step_inputs(batch: Batch) -> StepInputs:
    """The step's layout; which tokens they are, and where their own keys go, is of no account."""
    num_rows, num_keys = np.array(batch.num_rows), np.array(batch.num_keys)
    ends = np.cumsum(num_rows)
    positions = np.arange(ends[-1]) - np.repeat(ends - num_keys, num_rows)
    return StepInputs(
        input_ids=np.zeros(ends[-1], np.int64),
        positions=positions,
        slot_mapping=np.zeros(ends[-1], np.int64),
        query_start_loc=np.concatenate(([0], ends)).astype(np.int32),
        seq_lens=num_keys.astype(np.int32),
        rows=np.arange(len(num_keys), dtype=np.int32),
    )
