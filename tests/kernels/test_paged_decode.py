"""The paged decode kernel against dense attention in float64, over a cache full of NaN."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata
from pagetwin.engine.attention.registry import resolve_backend
from pagetwin.kernels.kv_write import write_kv as write_kv_kernel
from pagetwin.kernels.paged_decode import SPLIT_LENGTH, paged_decode
from pagetwin.kernels.reference import write_kv
from pagetwin.kernels.trial import PagedBatch, Span, exact_attention, make_batch, make_sequence


def spans(*lengths: int, num_rows: int = 1, **model: Any) -> list[Span]:
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_size": 64} | model
    return [
        Span(make_sequence(length, seed=i, **heads), length - num_rows, length)
        for i, length in enumerate(lengths)
    ]


def decode(
    batch: PagedBatch, device: torch.device, *, scale: float = 0.125, **options: Any
) -> Tensor:
    batch = batch.to(device)
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    out = torch.full_like(batch.q, torch.nan)
    paged_decode(
        out,
        batch.q,
        batch.kv_cache,
        batch.block_tables,
        batch.query_start_loc,
        batch.seq_lens,
        batch.max_seq_len,
        scale,
        **options,
    )
    return out.cpu()


def assert_within_bound(
    out: Tensor, rows: list[Span], *, scale: float = 0.125, **options: Any
) -> None:
    exact = exact_attention(rows, scale=scale, **options)
    bound = exact.error_bound(
        accumulate=torch.float32,
        store=out.dtype,
        head_size=out.shape[-1],
        soft_cap=options.get("soft_cap", 0.0),
    )
    ratio = ((out - exact.out).abs() / bound).max()
    assert ratio <= 1, f"error is {ratio} of its bound"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_size", [32, 64, 80, 96, 112, 128, 192, 256])
def test_head_sizes_and_dtypes(device: torch.device, head_size: int, dtype: torch.dtype) -> None:
    rows = spans(1, 37, 70, head_size=head_size, dtype=dtype)
    scale = head_size**-0.5
    out = decode(make_batch(rows, block_size=16), device, scale=scale)
    assert_within_bound(out, rows, scale=scale)


@pytest.mark.parametrize("group", [1, 2, 3, 7, 16, 32])
def test_groups_of_query_heads(device: torch.device, group: int) -> None:
    rows = spans(1, 50, num_heads=2 * group)
    assert_within_bound(decode(make_batch(rows, block_size=16), device), rows)


@pytest.mark.parametrize("block_size", [1, 8, 16, 24, 64, 128, 256])
@pytest.mark.parametrize("edge", [0, 1])
def test_block_sizes_at_the_end_of_a_block(
    device: torch.device, block_size: int, edge: int
) -> None:
    rows = spans(block_size + edge, 2 * min(block_size, 64) + edge)
    assert_within_bound(decode(make_batch(rows, block_size=block_size), device), rows)


@pytest.mark.parametrize("window", [1, 5, 64, 65, 128])
@pytest.mark.parametrize("split_length", [64, SPLIT_LENGTH])
def test_sliding_windows(device: torch.device, window: int, split_length: int) -> None:
    rows = spans(3, 64, 150)
    batch = make_batch(rows, block_size=16, sliding_window=window)
    out = decode(batch, device, sliding_window=window, split_length=split_length)
    assert_within_bound(out, rows, sliding_window=window)


@pytest.mark.parametrize("soft_cap", [1.0, 30.0])
def test_soft_cap(device: torch.device, soft_cap: float) -> None:
    rows = spans(3, 80)
    out = decode(make_batch(rows, block_size=16), device, soft_cap=soft_cap)
    assert_within_bound(out, rows, soft_cap=soft_cap)


def test_splits_are_merged_within_bound_whatever_their_number(device: torch.device) -> None:
    rows = spans(1, 64, 65, 200, 333)
    for split_length in (64, 128, 512):
        out = decode(make_batch(rows, block_size=16), device, split_length=split_length)
        assert_within_bound(out, rows)


def test_neighbours_do_not_change_a_bit(device: torch.device) -> None:
    """Not even where they make the row one of many splits that was the only one."""
    rows = spans(60, 64, 200, 1)
    options = {"split_length": 64}
    together = decode(make_batch(rows, block_size=16), device, **options)
    alone = [decode(make_batch([row], block_size=8), device, **options) for row in rows]
    assert torch.equal(together, torch.cat(alone))


def test_garbage_and_placement_do_not_change_a_bit(device: torch.device) -> None:
    rows = spans(5, 64, 100)
    first = decode(make_batch(rows, block_size=16), device)
    assert first.isfinite().all()
    for seed, poison in enumerate((0.0, math.inf, -math.inf, 1e30)):
        batch = make_batch(rows, block_size=16, poison=poison, placement_seed=seed)
        assert torch.equal(decode(batch, device), first)


def test_a_sequence_of_length_zero_gives_zero_and_chunks_are_left_alone(
    device: torch.device,
) -> None:
    rows = [*spans(5, 70), *spans(20, num_rows=3)]
    batch = make_batch(rows, block_size=16)
    lengths = batch.seq_lens.clone()
    lengths[1] = 0
    for split_length in (64, 128):
        out = decode(replace(batch, seq_lens=lengths), device, split_length=split_length)
        assert_within_bound(out[:1], rows[:1])
        assert not out[1].any()
        assert out[2:].isnan().all()


def test_scores_of_a_hundred_thousand_stay_finite(device: torch.device) -> None:
    out = decode(make_batch(spans(70), block_size=16), device, scale=1e4)
    assert out.isfinite().all()


def test_blocks_beyond_two_to_the_31_elements_are_found(device: torch.device) -> None:
    """The last blocks of a pool of 4 GiB, of which only these are ever touched."""
    rows = spans(40, dtype=torch.float16)
    batch = make_batch(rows, block_size=16)
    expected = decode(batch, device)
    small = batch.kv_cache.shape[1]
    block = batch.kv_cache[:, 0].numel()
    first = 2**31 // block + 1
    memory = torch.empty((first + small) * block, dtype=torch.float16, device=device)
    shape = (2, first + small, *batch.kv_cache.shape[2:])
    pool = memory.as_strided(shape, (block // 2, block, *batch.kv_cache.stride()[2:]))
    pool[:, first:] = batch.kv_cache.to(device)
    far = replace(
        batch,
        kv_cache=pool,
        block_tables=batch.block_tables + first,
        slot_mapping=batch.slot_mapping + first * 16,
    )
    out = torch.empty_like(batch.q, device=device)
    far = far.to(device)
    write_kv_kernel(far.k, far.v, far.kv_cache, far.slot_mapping)
    paged_decode(
        out,
        far.q,
        far.kv_cache,
        far.block_tables,
        far.query_start_loc,
        far.seq_lens,
        far.max_seq_len,
        0.125,
    )
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("window", [0, 40])
def test_the_triton_backend_agrees_in_a_mixed_step(device: torch.device, window: int) -> None:
    rows = [*spans(1, 90), *spans(70, num_rows=70), *spans(50, num_rows=7)]
    batch = make_batch(rows, block_size=16, sliding_window=window).to(device)
    spec = AttentionSpec(
        head_size=64,
        num_heads=4,
        num_kv_heads=2,
        dtype=torch.float32,
        block_size=16,
        device_type=device.type,
    )
    backend = resolve_backend("auto", spec)
    assert backend.name == "triton"
    metadata = AttentionMetadata(
        slot_mapping=batch.slot_mapping,
        query_start_loc=batch.query_start_loc,
        seq_lens=batch.seq_lens,
        block_tables=batch.block_tables,
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_seq_len,
    )
    out = backend.forward(
        batch.q, batch.k, batch.v, batch.kv_cache, metadata, scale=0.125, sliding_window=window
    )
    assert_within_bound(out.cpu(), rows, sliding_window=window)


def test_the_operator_is_well_formed(device: torch.device) -> None:
    batch = make_batch(spans(5, 20), block_size=16).to(device)
    args = (batch.kv_cache, batch.block_tables, batch.query_start_loc, batch.seq_lens)
    torch.library.opcheck(
        paged_decode,
        (torch.zeros_like(batch.q), batch.q, *args, batch.max_seq_len, 0.125),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"split_length": 100}, "no multiple of 32"), ({"out": True}, "must be contiguous")],
)
def test_arguments_that_cannot_work_are_refused(
    device: torch.device, change: dict[str, Any], complaint: str
) -> None:
    batch = make_batch(spans(5), block_size=16).to(device)
    out = torch.empty(1, 64, 4, device=device).mT if change.pop("out", False) else batch.q.clone()
    args = (batch.kv_cache, batch.block_tables, batch.query_start_loc, batch.seq_lens)
    with pytest.raises(ValueError, match=complaint):
        paged_decode(out, batch.q, *args, batch.max_seq_len, 0.125, **change)
