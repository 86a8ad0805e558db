"""The KV cache's moves against a plain model of them, byte for byte."""

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.kv_cache import KVCache, KVCacheLayout
from pagetwin.engine.step import BlockCopy, StepPlan

CPU = torch.device("cpu")
LAYOUT = KVCacheLayout(
    num_layers=2, block_size=4, num_kv_heads=3, head_size=8, dtype=torch.bfloat16
)


def random_cache(num_blocks: int, num_host_blocks: int) -> KVCache:
    cache = KVCache(LAYOUT, num_blocks, num_host_blocks, device=CPU)
    generator = torch.Generator().manual_seed(0)
    for pool in (cache.device_pool, cache.host_pool):
        pool.copy_(torch.randn(pool.shape, generator=generator))
    return cache


def in_turn(device: Tensor, host: Tensor, plan: StepPlan) -> None:
    """The same moves, one block after the other."""
    for source, target, pairs in (
        (device, host, plan.swap_outs),
        (host, device, plan.swap_ins),
        (device, device, plan.copies),
    ):
        for pair in pairs:
            target[:, :, pair.destination] = source[:, :, pair.source].clone()


def pairs(num_sources: int, num_destinations: int) -> st.SearchStrategy[tuple[BlockCopy, ...]]:
    pair = st.builds(
        BlockCopy, st.integers(0, num_sources - 1), st.integers(0, num_destinations - 1)
    )
    return st.lists(pair, max_size=8).map(tuple)


@given(swap_outs=pairs(6, 4), swap_ins=pairs(4, 6), copies=pairs(6, 6))
def test_a_plan_moves_blocks_as_if_one_after_the_other(
    swap_outs: tuple[BlockCopy, ...],
    swap_ins: tuple[BlockCopy, ...],
    copies: tuple[BlockCopy, ...],
) -> None:
    plan = StepPlan(step=0, swap_outs=swap_outs, swap_ins=swap_ins, copies=copies)
    if {c.source for c in copies} & {c.destination for c in copies}:
        event("chained copies")
    cache = random_cache(6, 4)
    device, host = cache.device_pool.clone(), cache.host_pool.clone()
    in_turn(device, host, plan)
    cache.apply(plan)
    assert torch.equal(cache.device_pool, device)
    assert torch.equal(cache.host_pool, host)


def test_swapping_out_and_in_restores_every_byte_elsewhere() -> None:
    cache = random_cache(6, 4)
    before = cache.device_pool.view(torch.uint8).clone().view(torch.bfloat16)
    cache.apply(StepPlan(step=0, swap_outs=(BlockCopy(2, 1), BlockCopy(5, 3))))
    cache.device_pool.fill_(torch.nan)
    cache.apply(StepPlan(step=1, swap_ins=(BlockCopy(1, 4), BlockCopy(3, 2))))
    assert torch.equal(cache.device_pool[:, :, [4, 2]], before[:, :, [2, 5]])
    assert cache.device_pool[:, :, [0, 1, 3, 5]].isnan().all()


def test_layers_are_views_of_the_pool() -> None:
    cache = random_cache(6, 0)
    assert [layer.shape for layer in cache.layers] == [(2, 6, 4, 3, 8)] * 2
    cache.layers[1].fill_(3)
    assert (cache.device_pool[1] == 3).all()


@pytest.mark.parametrize("poison", [False, True])
def test_a_new_cache_is_all_zeros_or_all_poison(poison: bool) -> None:
    cache = KVCache(LAYOUT, 3, 2, device=CPU, poison=poison)
    for pool in (cache.device_pool, cache.host_pool):
        assert bool(pool.isnan().all()) is poison
        assert bool((pool == 0).all()) is not poison


@given(num_blocks=st.integers(2, 50), rest=st.integers(0, LAYOUT.bytes_per_block - 1))
def test_as_many_blocks_fit_as_their_bytes_say(num_blocks: int, rest: int) -> None:
    cache = KVCache(LAYOUT, num_blocks, device=CPU)
    assert cache.device_pool.nbytes == num_blocks * LAYOUT.bytes_per_block
    num_bytes = num_blocks * LAYOUT.bytes_per_block + rest
    assert LAYOUT.num_blocks_for_bytes(num_bytes) == num_blocks


def test_memory_for_less_than_two_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hold 1 blocks of 768 bytes.*lower block_size=4"):
        LAYOUT.num_blocks_for_bytes(2 * 768 - 1)
