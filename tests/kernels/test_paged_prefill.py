"""The paged prefill kernels against dense attention in float64, over a cache full of NaN."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pagetwin.engine.attention.prefill_plan import plan_prefill
from pagetwin.kernels.attention_tiles import SPLIT, tile_size
from pagetwin.kernels.paged_prefill import (
    BLOCK_M,
    PrefillWork,
    hopper_refusal,
    launch_portable,
    paged_prefill,
    paged_prefill_op,
)
from pagetwin.kernels.reference import write_kv
from pagetwin.kernels.trial import PagedBatch, Span, exact_attention, make_batch, make_sequence


def spans(*ranges: tuple[int, int], **model: Any) -> list[Span]:
    heads = {"num_heads": 2, "num_kv_heads": 1, "head_size": 64} | model
    return [
        Span(make_sequence(end, seed=i, **heads), start, end)
        for i, (start, end) in enumerate(ranges)
    ]


def whole_work(batch: PagedBatch, device: torch.device, *, padding: int = 0) -> PrefillWork:
    """All sequences of more than one row; beside them, tiles without rows."""
    rows = batch.query_start_loc.diff().numpy()
    lengths = batch.seq_lens.numpy()
    tiles = torch.from_numpy(plan_prefill(rows, lengths, range(len(rows)), BLOCK_M))
    tiles = torch.cat([tiles, tiles.new_zeros(padding, 4)])
    return PrefillWork(tiles.to(device), batch.max_seq_len)


def prefill(
    batch: PagedBatch,
    device: torch.device,
    *,
    scale: float = 0.125,
    padding: int = 0,
    **options: Any,
) -> Tensor:
    work = whole_work(batch, device, padding=padding)
    batch = batch.to(device)
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    out = torch.full_like(batch.q, torch.nan)
    paged_prefill(out, batch.q, batch.kv_cache, batch.block_tables, work, scale, **options)
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
@pytest.mark.parametrize("head_size", [32, 64, 80, 128, 192, 256])
def test_head_sizes_and_dtypes(device: torch.device, head_size: int, dtype: torch.dtype) -> None:
    rows = spans((0, 37), (150, 190), head_size=head_size, dtype=dtype)
    scale = head_size**-0.5
    out = prefill(make_batch(rows, block_size=16), device, scale=scale)
    assert_within_bound(out, rows, scale=scale)


@pytest.mark.parametrize("group", [1, 3, 8])
def test_groups_of_query_heads(device: torch.device, group: int) -> None:
    rows = spans((0, 130), num_heads=2 * group, num_kv_heads=2, dtype=torch.bfloat16)
    assert_within_bound(prefill(make_batch(rows, block_size=16), device), rows)


@pytest.mark.parametrize("block_size", [1, 8, 16, 24, 48, 64, 128, 256])
@pytest.mark.parametrize("end", [128, 129, 255])
def test_block_sizes_at_the_edges_of_tiles(device: torch.device, block_size: int, end: int) -> None:
    rows = spans((end - 40, end), dtype=torch.bfloat16)
    assert_within_bound(prefill(make_batch(rows, block_size=block_size), device), rows)


@pytest.mark.parametrize(("start", "end"), [(0, 2), (127, 129), (0, 300), (100, 228), (1000, 1100)])
def test_chunks_wherever_they_start(device: torch.device, start: int, end: int) -> None:
    rows = spans((start, end), dtype=torch.bfloat16)
    assert_within_bound(prefill(make_batch(rows, block_size=16), device), rows)


@pytest.mark.parametrize("window", [1, 40, 128, 200, 1100])
def test_sliding_windows(device: torch.device, window: int) -> None:
    rows = spans((0, 150), (1190, 1290), dtype=torch.bfloat16)
    batch = make_batch(rows, block_size=16, sliding_window=window)
    out = prefill(batch, device, sliding_window=window)
    assert_within_bound(out, rows, sliding_window=window)


@pytest.mark.parametrize("soft_cap", [1.0, 30.0])
def test_soft_cap(device: torch.device, soft_cap: float) -> None:
    rows = spans((3, 80), dtype=torch.bfloat16)
    out = prefill(make_batch(rows, block_size=16), device, soft_cap=soft_cap)
    assert_within_bound(out, rows, soft_cap=soft_cap)


def test_slopes_add_to_scores_and_sinks_to_totals(device: torch.device) -> None:
    """Both are checked by scores and totals that have them built in."""
    rows = spans((1000, 1100), dtype=torch.float32)
    batch = make_batch(rows, block_size=16)
    slopes, sinks = torch.tensor([0.25, 0.03]), torch.tensor([3.0, -1.0])
    out = prefill(batch, device, alibi_slopes=slopes, sinks=sinks)
    q, k, v = (x.double() for x in rows[0].sequence)
    key = torch.arange(1100)
    query = torch.arange(1000, 1100)[:, None]
    scores = torch.einsum("qhd,kd->hqk", q[1000:], k[:, 0]) * 0.125
    scores += slopes[:, None, None] * (key - query)
    scores = scores.masked_fill(key > query, -math.inf)
    scores = torch.cat([scores, sinks[:, None, None].expand(2, 100, 1)], 2)
    exact = torch.einsum("hqk,kd->qhd", scores.softmax(2)[:, :, :-1], v[:, 0])
    assert (out - exact).abs().max() <= 1e-5


def test_whole_prompts_chunks_and_decodes_give_the_same_bits(device: torch.device) -> None:
    """Rows in one split, in two and in three, from chunks of 1500, 512, 24 and 2 rows."""
    (whole,) = spans((0, 2100), num_heads=1, dtype=torch.bfloat16)
    together = prefill(make_batch([whole], block_size=16), device)
    assert_within_bound(together, [whole])
    for start, end in ((0, 1500), (1500, 2012), (900, 924), (1020, 1044), (2046, 2050)):
        chunk = whole._replace(start=start, end=end)
        out = prefill(make_batch([chunk], block_size=32), device)
        assert torch.equal(out, together[start:end]), (start, end)


def test_neighbours_do_not_change_a_bit_and_decodes_are_left_alone(device: torch.device) -> None:
    rows = spans((0, 60), (63, 64), (100, 300), (0, 5), dtype=torch.bfloat16)
    together = prefill(make_batch(rows, block_size=16), device, padding=3)
    assert together[60:61].isnan().all()
    alone = [prefill(make_batch([row], block_size=8), device) for row in rows if row.start != 63]
    assert torch.equal(torch.cat([together[:60], together[61:]]), torch.cat(alone))


def test_garbage_and_placement_do_not_change_a_bit(device: torch.device) -> None:
    rows = spans((5, 64), (90, 141), dtype=torch.bfloat16)
    first = prefill(make_batch(rows, block_size=32), device)
    assert first.isfinite().all()
    for seed, poison in enumerate((0.0, math.inf, -math.inf, 1e30)):
        batch = make_batch(rows, block_size=32, poison=poison, placement_seed=seed)
        assert torch.equal(prefill(batch, device), first)


def test_rows_of_a_wider_product_are_read_and_written_in_place(device: torch.device) -> None:
    rows = spans((0, 50), dtype=torch.bfloat16)
    batch = make_batch(rows, block_size=16)
    expected = prefill(batch, device)
    work = whole_work(batch, device)
    batch = batch.to(device)
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    wide = torch.full((50, 5, 64), torch.nan, dtype=torch.bfloat16, device=device)
    wide[:, 1:3] = batch.q
    out = torch.full_like(wide, torch.nan)
    q, target = wide[:, 1:3], out[:, 2:4]
    paged_prefill(target, q, batch.kv_cache, batch.block_tables, work, 0.125)
    assert torch.equal(target.cpu(), expected)
    assert out[:, [0, 1, 4]].isnan().all()


def test_blocks_beyond_two_to_the_31_elements_are_found(device: torch.device) -> None:
    """The last blocks of a pool of 4 GiB, of which only these are ever touched."""
    rows = spans((20, 60), dtype=torch.float16)
    batch = make_batch(rows, block_size=16)
    expected = prefill(batch, device)
    work = whole_work(batch, device)
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    small = batch.kv_cache.shape[1]
    block = batch.kv_cache[:, 0].numel()
    first = 2**31 // block + 1
    memory = torch.empty((first + small) * block, dtype=torch.float16, device=device)
    shape = (2, first + small, *batch.kv_cache.shape[2:])
    pool = memory.as_strided(shape, (block // 2, block, *batch.kv_cache.stride()[2:]))
    pool[:, first:] = batch.kv_cache.to(device)
    out = torch.empty_like(batch.q, device=device)
    tables = (batch.block_tables + first).to(device)
    paged_prefill(out, batch.q.to(device), pool, tables, work, 0.125)
    assert torch.equal(out.cpu(), expected)


def test_an_empty_step_writes_nothing(device: torch.device) -> None:
    batch = make_batch(spans((4, 5)), block_size=16)
    assert prefill(batch, device).isnan().all()


def test_tiles_of_keys_cut_the_tiles_of_rows_of_the_plan() -> None:
    for head_size in (64, 128, 256):
        for itemsize in (2, 4):
            assert SPLIT % tile_size(head_size, itemsize) == 0


def test_strides_that_cannot_work_are_refused(device: torch.device) -> None:
    batch = make_batch(spans((0, 5)), block_size=16)
    work = whole_work(batch, device)
    batch = batch.to(device)
    out = torch.empty(5, 64, 2, device=device).mT
    with pytest.raises(ValueError, match="heads must lie together"):
        paged_prefill(out, batch.q, batch.kv_cache, batch.block_tables, work, 0.125)


def test_the_operator_is_well_formed(device: torch.device) -> None:
    batch = make_batch(spans((0, 20)), block_size=16)
    tiles = whole_work(batch, device).tiles
    batch = batch.to(device)
    torch.library.opcheck(
        paged_prefill_op,
        (torch.zeros_like(batch.q), batch.q, batch.kv_cache, batch.block_tables, tiles, 20, 0.125),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("head_size", "dtype", "block_size", "window", "ranges"),
    [
        (128, torch.bfloat16, 16, 0, [(0, 300), (1000, 1100), (127, 129)]),
        (128, torch.bfloat16, 16, 0, [(900, 2500), (2040, 2064), (0, 1024)]),
        (64, torch.bfloat16, 16, 0, [(0, 300), (1000, 2100)]),
        (128, torch.float16, 64, 0, [(5, 300), (3000, 3100)]),
        (128, torch.bfloat16, 128, 200, [(5, 300), (1000, 1400)]),
        (128, torch.bfloat16, 48, 1100, [(0, 250), (1190, 1500)]),
        (64, torch.float16, 32, 40, [(0, 250), (2000, 2500)]),
    ],
)
def test_the_hopper_kernel_gives_the_portable_kernels_bits(
    head_size: int,
    dtype: torch.dtype,
    block_size: int,
    window: int,
    ranges: list[tuple[int, int]],
) -> None:
    """Both over a cache full of NaN, with sinks, and within the bound of float64."""
    device = torch.device("cuda")
    rows = spans(*ranges, num_heads=4, num_kv_heads=2, head_size=head_size, dtype=dtype)
    batch = make_batch(rows, block_size=block_size, sliding_window=window)
    work = whole_work(batch, device, padding=1)
    batch = batch.to(device)
    reason = hopper_refusal(batch.q, batch.q, batch.kv_cache)
    if reason:
        pytest.skip(reason)
    write_kv(batch.k, batch.v, batch.kv_cache, batch.slot_mapping)
    for sinks in (None, torch.tensor([1.0, -1.0, 0.5, 2.0], device=device)):
        outs = []
        for function in (paged_prefill, launch_portable):
            out = torch.full_like(batch.q, torch.nan)
            args = (batch.kv_cache, batch.block_tables, work, 0.125)
            function(out, batch.q, *args, sliding_window=window, sinks=sinks)
            outs.append(out.cpu())
        assert torch.equal(*outs)
        if sinks is None:
            assert_within_bound(outs[0], rows, sliding_window=window)
