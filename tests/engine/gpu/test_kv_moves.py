"""Moves of KV blocks on a GPU against one block after the other, while other work writes too.

Interpreted, only copies within the pool are a kernel's; swaps are plain.
"""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pagetwin.engine import kv_swap
from pagetwin.engine.kv_cache import KVCache, KVCacheLayout
from pagetwin.engine.step import BlockCopy, StepPlan

NUM_BLOCKS, NUM_HOST_BLOCKS = 40, 30


def make_cache(device: str) -> KVCache:
    # On a GPU a block of 2 MiB: what is not waited for shows.
    sizes = (16, 8, 128) if device == "cuda" else (2, 1, 8)
    layout = KVCacheLayout(
        num_layers=32 if device == "cuda" else 2,
        block_size=sizes[0],
        num_kv_heads=sizes[1],
        head_size=sizes[2],
        dtype=torch.bfloat16,
    )
    return KVCache(layout, NUM_BLOCKS, NUM_HOST_BLOCKS, device=torch.device(device))


def random_plan(step: int, rng: random.Random) -> StepPlan:
    def pairs(num_sources: int, num_destinations: int, most: int) -> tuple[BlockCopy, ...]:
        count = rng.choice([0, 1, rng.randrange(most)])
        destinations = rng.sample(range(num_destinations), min(count, num_destinations))
        return tuple(BlockCopy(rng.randrange(num_sources), d) for d in destinations)

    return StepPlan(
        step=step,
        swap_outs=pairs(NUM_BLOCKS, NUM_HOST_BLOCKS, 25),
        swap_ins=pairs(NUM_HOST_BLOCKS, NUM_BLOCKS, 25),
        copies=pairs(NUM_BLOCKS, NUM_BLOCKS, 6),
    )


def in_turn(device: Tensor, host: Tensor, plan: StepPlan) -> None:
    for source, target, moves in (
        (device, host, plan.swap_outs),
        (host, device, plan.swap_ins),
        (device, device, plan.copies),
    ):
        for pair in moves:
            target[pair.destination] = source[pair.source]


def marks(pool: Tensor) -> Tensor:
    """One number per block, if all that is in it is the same; else NaN."""
    blocks = pool.movedim(2, 0).flatten(1).float()
    lowest, highest = blocks.amin(1), blocks.amax(1)
    return lowest.where(lowest == highest, torch.nan)


@pytest.mark.parametrize("seed", range(3))
def test_plans_move_blocks_as_if_one_after_the_other(
    device: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_swap, "STAGING_BYTES", 10 * 2**21)
    rng = random.Random(seed)
    cache = make_cache(device)
    expected = torch.arange(NUM_BLOCKS).float(), -torch.arange(NUM_HOST_BLOCKS).float()
    for pool, numbers in zip((cache.device_pool, cache.host_pool), expected, strict=True):
        pool.copy_(numbers[:, None, None, None])
    cache.rehearse()
    most, chained = 0, 0
    for step in range(40 if device == "cuda" else 10):
        plan = random_plan(step, rng)
        most = max(most, len(plan.swap_outs), len(plan.swap_ins))
        chained += bool({c.source for c in plan.copies} & {c.destination for c in plan.copies})
        cache.apply(plan)
        in_turn(*expected, plan)
        # What a model would do, at once, to the blocks that were just swapped out.
        for block_id in {pair.source for pair in plan.swap_outs}:
            cache.device_pool[:, :, block_id] = 50 + step
            expected[0][block_id] = 50 + step
    cache.synchronize()
    assert torch.equal(marks(cache.device_pool).cpu(), expected[0])
    assert torch.equal(marks(cache.host_pool), expected[1])
    assert most > 5, "more than a part of the staging memory holds"
    assert chained


@pytest.mark.gpu
def test_the_host_does_not_wait_for_the_bus() -> None:
    cache = make_cache("cuda")
    busy = torch.randn(8192, 8192, device="cuda")
    pairs: Sequence[BlockCopy] = [BlockCopy(1 + i, 29 - i) for i in range(30)]
    cache.apply(StepPlan(step=0, swap_outs=tuple(pairs)))
    cache.synchronize()
    for _ in range(20):
        busy = busy @ busy
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    cache.apply(StepPlan(step=1, swap_outs=tuple(pairs)))
    back = tuple(BlockCopy(pair.destination, pair.source) for pair in pairs)
    cache.apply(StepPlan(step=2, swap_ins=back, copies=(BlockCopy(1, 39),)))
    done.record(torch.cuda.current_stream())
    assert not done.query()  # type: ignore[no-untyped-call]
    cache.synchronize()


@pytest.mark.gpu
def test_host_memory_is_page_locked_while_the_cache_lives() -> None:
    cache = make_cache("cuda")
    host = cache.host_pool
    assert host.is_pinned()
    del cache
    assert not host.is_pinned()
