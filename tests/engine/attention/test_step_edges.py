"""Padding rows, empty sequences, skipped writes, and what stays the same from step to step."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionSpec
from pagetwin.engine.attention.torch_backend import TorchBackend
from pagetwin.kernels.trial import PagedBatch, Span, make_batch, make_sequence

Forward = Callable[..., Tensor]

SPEC = AttentionSpec(head_size=32, num_heads=4, num_kv_heads=2, dtype=torch.float32, block_size=16)


def spans(*bounds: tuple[int, int]) -> list[Span]:
    return [
        Span(make_sequence(end, num_heads=4, num_kv_heads=2, head_size=32, seed=i), start, end)
        for i, (start, end) in enumerate(bounds)
    ]


def padded(batch: PagedBatch, num_rows: int, *, num_seqs: int) -> PagedBatch:
    """The batch as a captured graph would see it: NaN rows that write nowhere, empty sequences."""

    def more(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor.new_full((num_rows, *tensor.shape[1:]), torch.nan)])

    def zeros(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor.new_zeros((num_seqs, *tensor.shape[1:]))])

    end = batch.query_start_loc[-1:]
    return replace(
        batch,
        q=more(batch.q),
        k=more(batch.k),
        v=more(batch.v),
        slot_mapping=torch.cat([batch.slot_mapping, torch.full((num_rows,), -1)]),
        query_start_loc=torch.cat([batch.query_start_loc, end.expand(num_seqs)]),
        seq_lens=zeros(batch.seq_lens),
        block_tables=zeros(batch.block_tables),
    )


def test_padding_neither_writes_nor_influences_and_gives_zero(forward: Forward) -> None:
    def fresh() -> PagedBatch:
        return make_batch(spans((5, 6), (0, 16), (20, 33)), block_size=16)

    plain, more = fresh(), padded(fresh(), 5, num_seqs=2)
    out = forward(TorchBackend(SPEC), plain)
    padded_out = forward(TorchBackend(SPEC), more)
    assert torch.equal(padded_out[: len(out)], out)
    assert not padded_out[len(out) :].any()
    torch.testing.assert_close(more.kv_cache, plain.kv_cache, rtol=0, atol=0, equal_nan=True)


def test_a_padding_sequence_with_a_row_and_no_length_gives_zero(forward: Forward) -> None:
    batch = make_batch(spans((5, 6), (7, 8)), block_size=16)
    lengths = batch.seq_lens.clone()
    lengths[1] = 0
    out = forward(TorchBackend(SPEC), replace(batch, seq_lens=lengths))
    assert out[0].any()
    assert not out[1].any()


def test_a_step_writes_its_slots_and_no_others(forward: Forward) -> None:
    batch = make_batch(spans((5, 6), (3, 20)), block_size=16, poison=7.0)
    before = batch.kv_cache.clone()
    forward(TorchBackend(SPEC), batch)
    for side, old, new in zip(batch.kv_cache, before, (batch.k, batch.v), strict=True):
        expected = old.clone().flatten(0, 1)
        expected[batch.slot_mapping] = new
        assert torch.equal(side.flatten(0, 1), expected)
        assert not torch.equal(side, old)


def test_queries_may_be_a_view_of_a_wider_tensor(forward: Forward) -> None:
    batch = make_batch(spans((5, 6), (3, 20)), block_size=16)
    wide = torch.cat([batch.q, batch.k, batch.v], dim=1)
    q, k, v = torch.split(wide, [4, 2, 2], dim=1)
    assert not q.is_contiguous()
    expected = forward(TorchBackend(SPEC), batch)
    again = make_batch(spans((5, 6), (3, 20)), block_size=16)
    assert torch.equal(forward(TorchBackend(SPEC), replace(again, q=q, k=k, v=v)), expected)


def test_one_backend_serves_steps_and_layers_of_all_kinds(forward: Forward) -> None:
    """What it keeps from one call to the next never shows, within inference mode and outside."""
    shared = TorchBackend(SPEC)
    steps = [[(0, 9)], [(9, 10), (0, 200)], [(10, 11), (200, 201)], [(300, 301)] * 40, [(0, 1)]]
    for number, step in enumerate(steps):
        for window in (0, 4):
            with torch.inference_mode(number % 2 == 0):
                batch = make_batch(spans(*step), block_size=16, sliding_window=window)
                fresh = make_batch(spans(*step), block_size=16, sliding_window=window)
                out = forward(shared, batch, sliding_window=window)
                expected = forward(TorchBackend(SPEC), fresh, sliding_window=window)
                assert torch.equal(out, expected)
