"""The paged decode kernel against dense attention in float64, over a cache full of NaN."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pagetwin.engine.attention.decode_plan import plan_decode
from pagetwin.kernels import paged_decode as module
from pagetwin.kernels.attention_tiles import SPLIT
from pagetwin.kernels.paged_decode import (
    DecodeScratch,
    DecodeWork,
    hopper_refusal,
    launch_portable,
    members_per_item,
    paged_decode,
    paged_decode_op,
)
from pagetwin.kernels.reference import write_kv
from pagetwin.kernels.trial import PagedBatch, Span, exact_attention, make_batch, make_sequence

ONE_KV_HEAD = {"num_heads": 2, "num_kv_heads": 1}


def spans(*lengths: int, num_rows: int = 1, **model: Any) -> list[Span]:
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_size": 64} | model
    return [
        Span(make_sequence(length, seed=i, **heads), length - num_rows, length)
        for i, length in enumerate(lengths)
    ]


def work_of(batch: PagedBatch, *, can_share: bool = True) -> tuple[DecodeWork, DecodeScratch]:
    """The work of the batch's single rows; partial results start as NaN."""
    is_single = (batch.query_start_loc.diff() == 1).cpu().numpy()
    (num_heads, head_size), num_kv_heads = batch.q.shape[1:], batch.k.shape[1]
    plan = plan_decode(
        batch.query_start_loc.cpu().numpy()[:-1][is_single],
        batch.seq_lens.cpu().numpy()[is_single],
        np.arange(len(is_single), dtype=np.int32)[is_single],
        batch.block_tables.cpu().numpy(),
        block_size=batch.kv_cache.shape[2],
        members_per_item=members_per_item(num_heads // num_kv_heads) if can_share else 1,
    )
    device = batch.q.device
    num_items = torch.tensor([len(plan.items)], dtype=torch.int32, device=device)
    spare = np.full((3, 4), -1, np.int32)
    items = torch.from_numpy(np.concatenate((plan.items, spare))).to(device)
    work = DecodeWork(items, torch.from_numpy(plan.members).to(device), num_items)
    scratch = DecodeScratch.of(plan.num_slots, num_heads, num_kv_heads, head_size, device)
    scratch.weighted.fill_(torch.nan)
    scratch.stats.fill_(torch.nan)
    return work, scratch


def decode(
    batch: PagedBatch,
    device: torch.device,
    *,
    scale: float = 0.125,
    can_share: bool = True,
    **options: Any,
) -> Tensor:
    """Checks beside that all counters are 0 again afterwards."""
    batch = batch.to(device)
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    work, scratch = work_of(batch, can_share=can_share)
    out = torch.full_like(batch.q, torch.nan)
    tables = batch.block_tables
    paged_decode(out, batch.q, batch.kv_cache, tables, work, scratch, scale, **options)
    assert not scratch.arrivals.any()
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
    rows = spans(1, 37, 150, head_size=head_size, dtype=dtype)
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


@pytest.mark.parametrize("block_size", [8, 16, 24, 256])
def test_splits_are_folded(device: torch.device, block_size: int) -> None:
    rows = spans(SPLIT, SPLIT + 1, 5 * SPLIT - 1, **ONE_KV_HEAD)
    assert_within_bound(decode(make_batch(rows, block_size=block_size), device), rows)


@pytest.mark.parametrize("window", [1, 5, 64, 129, 1100])
def test_sliding_windows(device: torch.device, window: int) -> None:
    """In blocks wholly before the window there is NaN, and splits before it see nothing."""
    rows = spans(3, 64, 150, 2 * SPLIT + 3, **ONE_KV_HEAD)
    batch = make_batch(rows, block_size=16, sliding_window=window)
    out = decode(batch, device, sliding_window=window)
    assert_within_bound(out, rows, sliding_window=window)


@pytest.mark.parametrize("soft_cap", [1.0, 30.0])
def test_soft_cap(device: torch.device, soft_cap: float) -> None:
    rows = spans(3, 80)
    out = decode(make_batch(rows, block_size=16), device, soft_cap=soft_cap)
    assert_within_bound(out, rows, soft_cap=soft_cap)


@pytest.mark.parametrize("others", [{}, {"soft_cap": 20.0, "sliding_window": 300}])
def test_alibi_and_sinks(device: torch.device, others: dict[str, Any]) -> None:
    """Heads that see one sink of a weight like that of a key, of a hundred keys, and of none."""
    rows = spans(3, 80, SPLIT + 70, num_heads=3, num_kv_heads=1)
    slopes, sinks = torch.tensor([0.5, 0.0625, 0.0]), torch.tensor([0.0, 4.0, -torch.inf])
    batch = make_batch(rows, block_size=16, sliding_window=others.get("sliding_window", 0))
    out = decode(batch, device, alibi_slopes=slopes.to(device), sinks=sinks.to(device), **others)
    assert_within_bound(out, rows, alibi_slopes=slopes, sinks=sinks, **others)


def test_neighbours_do_not_change_a_bit(device: torch.device) -> None:
    rows = spans(60, 64, 2 * SPLIT + 200, 1, **ONE_KV_HEAD)
    together = decode(make_batch(rows, block_size=16), device)
    alone = [decode(make_batch([row], block_size=8), device) for row in rows]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("num_programs", [1, 2, 7, 1000])
def test_the_number_of_programs_does_not_change_a_bit(
    device: torch.device, num_programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it that one does everything, that some ask for more, or that some have nothing to do."""
    batch = make_batch(spans(60, SPLIT + 1, 200, 1), block_size=16)
    expected = decode(batch, device)
    monkeypatch.setattr(module, "_device_facts", lambda device: (90, num_programs))
    assert torch.equal(decode(batch, device), expected)


def with_shared_beginning(lengths: list[int], num_shared: int, **model: Any) -> list[Span]:
    """Sequences whose keys and values are the same up to `num_shared`."""
    rows = spans(*lengths, **model)
    for row in rows[1:]:
        for mine, first in zip(row.sequence[1:], rows[0].sequence[1:], strict=True):
            mine[:num_shared] = first[:num_shared]
    return rows


@pytest.mark.parametrize("window", [0, 500])
@pytest.mark.parametrize("group", [1, 3, 12])
def test_reading_a_shared_prefix_once_changes_no_bit(
    device: torch.device, group: int, window: int
) -> None:
    lengths = [2 * SPLIT + 9, SPLIT, SPLIT + 300, 2 * SPLIT + 50, 2 * SPLIT]
    model = {"num_heads": group, "num_kv_heads": 1}
    rows = with_shared_beginning(lengths, SPLIT, **model)
    batch = make_batch(rows, block_size=16)
    expected = decode(batch, device, sliding_window=window)
    assert_within_bound(expected, rows, sliding_window=window)
    batch.block_tables[1:, : SPLIT // 16] = batch.block_tables[0, : SPLIT // 16]
    work, _ = work_of(batch)
    assert (work.items[: int(work.num_items), 3].max() > 1) == (members_per_item(group) > 1)
    assert torch.equal(decode(batch, device, sliding_window=window), expected)
    apart = decode(batch, device, sliding_window=window, can_share=False)
    assert torch.equal(apart, expected)


def test_garbage_and_placement_do_not_change_a_bit(device: torch.device) -> None:
    rows = spans(5, 64, 100)
    first = decode(make_batch(rows, block_size=16), device)
    assert first.isfinite().all()
    for seed, poison in enumerate((0.0, math.inf, -math.inf, 1e30)):
        batch = make_batch(rows, block_size=16, poison=poison, placement_seed=seed)
        assert torch.equal(decode(batch, device), first)


@pytest.mark.parametrize("width", [16, 21])
def test_how_wide_the_tables_are_does_not_change_a_bit(device: torch.device, width: int) -> None:
    """Rows of whole tiles are read in larger pieces."""
    batch = make_batch(spans(5, 130, 150), block_size=16)
    expected = decode(batch, device)
    tables = batch.block_tables.new_full((3, width), 2**30)
    tables[:, : batch.block_tables.shape[1]] = batch.block_tables
    assert torch.equal(decode(replace(batch, block_tables=tables), device), expected)


def test_padding_gives_zero_and_chunks_are_left_alone(device: torch.device) -> None:
    rows = [*spans(5, 70), *spans(20, num_rows=3)]
    batch = make_batch(rows, block_size=16)
    lengths = batch.seq_lens.clone()
    lengths[1] = 0
    out = decode(replace(batch, seq_lens=lengths), device)
    assert_within_bound(out[:1], rows[:1])
    assert not out[1].any()
    assert out[2:].isnan().all()


def test_scores_of_a_hundred_thousand_stay_finite(device: torch.device) -> None:
    out = decode(make_batch(spans(70), block_size=16), device, scale=1e4)
    assert out.isfinite().all()


def test_blocks_beyond_two_to_the_31_elements_are_found(device: torch.device) -> None:
    """The last blocks of a pool of 4 GiB, of which only these are ever touched."""
    batch = make_batch(spans(40, dtype=torch.float16), block_size=16)
    expected = decode(batch, device)
    small = batch.kv_cache.shape[1]
    block = batch.kv_cache[:, 0].numel()
    first = 2**31 // block + 1
    memory = torch.empty((first + small) * block, dtype=torch.float16, device=device)
    shape = (2, first + small, *batch.kv_cache.shape[2:])
    pool = memory.as_strided(shape, (block // 2, block, *batch.kv_cache.stride()[2:]))
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    pool[:, first:] = batch.kv_cache.to(device)
    work, scratch = work_of(batch.to(device))
    out = torch.empty_like(batch.q, device=device)
    tables = batch.block_tables.to(device) + first
    paged_decode(out, batch.q.to(device), pool, tables, work, scratch, 0.125)
    assert torch.equal(out.cpu(), expected)


def test_the_operator_is_well_formed(device: torch.device) -> None:
    batch = make_batch(spans(5, 20), block_size=16).to(device)
    work, scratch = work_of(batch)
    tensors = (*vars(work).values(), *vars(scratch).values())
    torch.library.opcheck(
        paged_decode_op,
        (torch.zeros_like(batch.q), batch.q, batch.kv_cache, batch.block_tables, *tensors, 0.125),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"scale": 0.0}, "must be positive"), ({"out": True}, "must be contiguous")],
)
def test_arguments_that_cannot_work_are_refused(
    device: torch.device, change: dict[str, Any], complaint: str
) -> None:
    batch = make_batch(spans(5), block_size=16).to(device)
    out = torch.empty(1, 64, 4, device=device).mT if change.get("out") else batch.q.clone()
    work, scratch = work_of(batch)
    scale = change.get("scale", 0.125)
    with pytest.raises(ValueError, match=complaint):
        paged_decode(out, batch.q, batch.kv_cache, batch.block_tables, work, scratch, scale)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("head_size", "dtype", "group", "block_size"),
    [
        (128, torch.bfloat16, 1, 16),
        (128, torch.bfloat16, 4, 16),
        (128, torch.float16, 7, 48),
        (128, torch.bfloat16, 16, 128),
        (64, torch.bfloat16, 3, 16),
        (64, torch.float16, 8, 32),
    ],
)
def test_the_hopper_kernel_gives_the_portable_kernels_bits(
    head_size: int,
    dtype: torch.dtype,
    group: int,
    block_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ends of blocks, tiles and splits, items of several sequences, and padding, which is 0."""
    lengths = [1, 15, 16, 17, 127, 128, 129, 640, *range(SPLIT - 1, SPLIT + 2), 3 * SPLIT - 20]
    shared = [SPLIT, SPLIT + 300, 2 * SPLIT + 50, SPLIT]
    model: dict[str, Any] = {"num_heads": 2 * group, "num_kv_heads": 2}
    model |= {"head_size": head_size, "dtype": dtype}
    rows = [*spans(*lengths, **model), *with_shared_beginning(shared, SPLIT, **model)]
    batch = make_batch(rows, block_size=block_size)
    num_shared = SPLIT // block_size
    batch.block_tables[-3:, :num_shared] = batch.block_tables[-4, :num_shared]
    batch.seq_lens[7] = 0
    batch = batch.to(torch.device("cuda"))
    if reason := hopper_refusal(batch.q, batch.kv_cache):
        pytest.skip(reason)
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    work, scratch = work_of(batch)
    can_share = members_per_item(group) > 1 and SPLIT % block_size == 0
    assert (work.items[: int(work.num_items), 3].max() > 1) == can_share

    def attention(function: Callable[..., None]) -> Tensor:
        out = torch.full_like(batch.q, torch.nan)
        function(out, batch.q, batch.kv_cache, batch.block_tables, work, scratch, 0.125)
        assert not scratch.arrivals.any()
        return out.cpu()

    expected = attention(launch_portable)
    assert not expected[7].any()
    visible = [i for i in range(len(rows)) if i != 7]
    assert_within_bound(expected[visible], [rows[i] for i in visible])
    for num_programs in (1, 5, 132, 132):
        monkeypatch.setattr(module, "num_multiprocessors", lambda device, n=num_programs: n)
        assert torch.equal(attention(paged_decode), expected)
