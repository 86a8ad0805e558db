"""The Triton backend: the same rows whoever plans, whatever else is in the step."""

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata
from pagetwin.engine.attention.registry import resolve_backend
from pagetwin.engine.attention.triton_backend import TritonBackend
from pagetwin.engine.step_inputs import StepInputs, pad_decodes
from pagetwin.kernels.attention_tiles import SPLIT
from pagetwin.kernels.reference import write_kv
from pagetwin.kernels.trial import PagedBatch, Span, exact_attention, make_batch, make_sequence


def make_backend(device: torch.device) -> TritonBackend:
    spec = AttentionSpec(
        head_size=64,
        num_heads=2,
        num_kv_heads=1,
        dtype=torch.float32,
        block_size=16,
        device_type=device.type,
    )
    backend = resolve_backend("auto", spec)
    assert isinstance(backend, TritonBackend)
    return backend


def span(length: int, num_rows: int = 1) -> Span:
    sequence = make_sequence(length, num_heads=2, num_kv_heads=1, head_size=64, seed=length)
    return Span(sequence, length - num_rows, length)


def filled(rows: list[Span], device: torch.device, **options: Any) -> PagedBatch:
    batch = make_batch(rows, block_size=16, **options).to(device)
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    return batch


def inputs_of(batch: PagedBatch) -> StepInputs:
    num_tokens, num_seqs = len(batch.q), len(batch.seq_lens)
    return StepInputs(
        input_ids=np.zeros(num_tokens, np.int64),
        positions=np.concatenate(
            [
                np.arange(length - num_rows, length)
                for length, num_rows in zip(
                    batch.seq_lens.tolist(), batch.query_start_loc.diff().tolist(), strict=True
                )
            ]
        ),
        slot_mapping=batch.slot_mapping.cpu().numpy(),
        query_start_loc=batch.query_start_loc.cpu().numpy(),
        seq_lens=batch.seq_lens.cpu().numpy(),
        rows=np.arange(num_seqs, dtype=np.int32),
    )


def attend(
    backend: TritonBackend,
    batch: PagedBatch,
    *,
    sliding_window: int = 0,
    pad_to: int = 0,
    plans: bool = True,
    only: list[int] | None = None,
) -> Tensor:
    """Planned as the engine does, for a graph if `pad_to` is given; or by the backend itself.

    `only` the queries of some rows, if given.
    """
    inputs = inputs_of(batch)
    q, device = batch.q, batch.q.device
    if only is not None:
        inputs, q = inputs.of_rows(np.array(only)), q[only]
    if pad_to:
        inputs = pad_decodes(inputs, pad_to)
        q = torch.cat([q, q.new_full((pad_to - len(q), *q.shape[1:]), torch.nan)])
    work: dict[str, Any] = {}
    if plans:
        host_tables = batch.block_tables.cpu().numpy()
        arrays = backend.plan(inputs, host_tables, is_graph=bool(pad_to))
        views = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        work = backend.work(views, is_graph=bool(pad_to))
    metadata = AttentionMetadata(
        slot_mapping=batch.slot_mapping,
        query_start_loc=torch.from_numpy(inputs.query_start_loc).to(device),
        seq_lens=torch.from_numpy(inputs.seq_lens).to(device),
        block_tables=batch.block_tables,
        table_rows=torch.from_numpy(inputs.rows).to(device),
        max_query_len=inputs.max_query_len,
        max_seq_len=inputs.max_seq_len,
        **work,
    )
    out = backend.forward(q, batch.kv_cache, metadata, scale=0.125, sliding_window=sliding_window)
    return out.cpu()


@pytest.mark.parametrize("window", [0, 40])
def test_a_mixed_step_is_within_bound_and_its_rows_are_those_of_steps_of_their_own(
    device: torch.device, window: int
) -> None:
    backend = make_backend(device)
    rows = [span(1), span(SPLIT + 90), span(70, num_rows=70), span(50, num_rows=7)]
    batch = filled(rows, device, sliding_window=window)
    out = attend(backend, batch, sliding_window=window)
    exact = exact_attention(rows, scale=0.125, sliding_window=window)
    bound = exact.error_bound(accumulate=torch.float32, store=out.dtype, head_size=64)
    assert ((out - exact.out).abs() <= bound).all()
    alone = [
        attend(backend, filled([row], device, sliding_window=window), sliding_window=window)
        for row in rows
    ]
    assert torch.equal(out, torch.cat(alone))


def test_a_step_that_comes_without_work_gives_the_same_bits(device: torch.device) -> None:
    backend = make_backend(device)
    batch = filled([span(20), span(70, num_rows=5)], device)
    assert torch.equal(attend(backend, batch, plans=False), attend(backend, batch))


def test_a_graphs_step_gives_the_same_bits_and_zero_for_padding(device: torch.device) -> None:
    backend = make_backend(device)
    batch = filled([span(20), span(SPLIT + 1)], device)
    expected = attend(backend, batch)
    out = attend(backend, batch, pad_to=4)
    assert torch.equal(out[:2], expected)
    assert not out[2:].any()


def test_what_a_graph_reads_has_a_shape_that_follows_from_the_number_of_sequences(
    device: torch.device,
) -> None:
    backend = make_backend(device)
    tables = np.arange(4 * 200, dtype=np.int32).reshape(4, 200)
    shapes = []
    for lengths in ([1, 1, 1, 1], [3200, 5, 2000, 1024], [9, 0, 0, 0]):
        lens = np.array(lengths, np.int32)
        ones = np.arange(5, dtype=np.int32)
        zeros = np.zeros(4, np.int64)
        inputs = StepInputs(zeros, zeros, zeros, ones, lens, ones[:4])
        arrays = backend.plan(inputs, tables, is_graph=True)
        shapes.append({name: array.shape for name, array in arrays.items()})
    assert shapes[0] == shapes[1] == shapes[2]


def test_a_row_as_part_of_a_prompt_and_as_a_step_of_its_own_has_the_same_bits(
    device: torch.device,
) -> None:
    backend = make_backend(device)
    length = SPLIT + 40
    whole = attend(backend, filled([span(length, num_rows=length)], device))
    for num_rows in (1, 5):
        end = attend(backend, filled([span(length, num_rows=num_rows)], device))
        assert torch.equal(end, whole[-num_rows:])


@pytest.mark.parametrize("window", [0, 40])
def test_some_queries_of_a_step_alone_have_the_same_bits(device: torch.device, window: int) -> None:
    """What the last layer asks for: any rows, whatever they are part of."""
    ends = st.sampled_from([1, 16, 70, 129, SPLIT])
    kinds: set[bool] = set()

    @settings(max_examples=4)
    @given(
        spans=st.lists(st.tuples(ends, st.integers(1, 60)), min_size=1, max_size=3),
        seed=st.randoms(use_true_random=False),
    )
    def check(spans: list[tuple[int, int]], seed: Random) -> None:
        spans = [*spans, (SPLIT + 20, 30)]
        rows = [span(end, min(end, num_rows)) for end, num_rows in spans]
        batch = filled(rows, device, sliding_window=window)
        positions = inputs_of(batch).positions
        only = seed.sample(range(len(positions)), min(12, len(positions)))
        backend = make_backend(device)
        out = attend(backend, batch, sliding_window=window)
        some = attend(backend, batch, sliding_window=window, only=only)
        assert torch.equal(some, out[only])
        kinds.update(position >= SPLIT for position in positions[only])

    check()
    assert kinds == {True, False}
