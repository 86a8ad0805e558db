"""Moves of KV blocks by the cache that models use, against a table of what each block holds."""

from random import Random

import torch
from torch import Tensor

from pagetwin.conformance.properties import Violation, violation
from pagetwin.engine.kv_cache import KVCache, KVCacheLayout
from pagetwin.engine.step import BlockCopy, StepPlan
from pagetwin.kernels.reference import write_kv

LAYOUT = KVCacheLayout(num_layers=2, block_size=2, num_kv_heads=1, head_size=2, dtype=torch.float32)
NUM_BLOCKS, NUM_HOST_BLOCKS = 7, 5


def judge_memory(seed: int, index: int) -> list[Violation]:
    """A few plans' swaps and copies, and the writes between them: every layer's keys and values
    are, byte for byte, where the plans say."""
    random = Random(f"memory {seed} {index}")
    cache = KVCache(LAYOUT, NUM_BLOCKS, NUM_HOST_BLOCKS, device=torch.device("cpu"))
    # A value of its own for each layer, side, block and slot.
    cache.device_pool.copy_(_distinct(cache.device_pool.shape, 0))
    cache.host_pool.copy_(_distinct(cache.host_pool.shape, 10_000))
    device, host = cache.device_pool.clone(), cache.host_pool.clone()
    for step in range(3):
        plan = _plan(random, step)
        try:
            cache.apply(plan)
        except Exception as error:  # whatever it is: the plan is a valid one
            message = f"the cache raised {type(error).__name__}: {error}"
            return [violation("life.no-crash", step, message)]
        for pairs, source, target in (
            (plan.swap_outs, device, host),
            (plan.swap_ins, host, device),
            (plan.copies, device, device),
        ):
            for one in pairs:
                target[:, :, one.destination] = source[:, :, one.source]
        moved = [
            name
            for name, pool, expected in (
                ("device", cache.device_pool, device),
                ("host", cache.host_pool, host),
            )
            if not torch.equal(pool, expected)
        ]
        if moved:
            message = "a block does not hold what was moved there"
            return [violation("swap.round-trip", step, message, pools=moved, plan=plan)]
        wrong = _write(random, cache, device)
        if wrong:
            return [violation("mem.writes-own-slots", step, wrong)]
    return []


def _distinct(shape: torch.Size, first: int) -> Tensor:
    return torch.arange(first, first + shape.numel(), dtype=torch.float32).view(shape)


def _plan(random: Random, step: int) -> StepPlan:
    """As the policy makes them: each destination once; copies read what was swapped in, too."""

    def pairs(sources: range, targets: range, most: int) -> tuple[BlockCopy, ...]:
        chosen = random.sample(targets, random.randint(0, most))
        return tuple(BlockCopy(random.choice(sources), target) for target in chosen)

    blocks, host = range(1, NUM_BLOCKS), range(NUM_HOST_BLOCKS)
    copies = pairs(range(1, 4), range(4, NUM_BLOCKS), 3)
    return StepPlan(
        step=step,
        swap_outs=pairs(blocks, host, 3),
        swap_ins=pairs(host, blocks, 3),
        copies=copies,
    )


def _write(random: Random, cache: KVCache, device: Tensor) -> str:
    """Tokens' keys and values, padding among them, to their slots and to no others."""
    slots = random.sample(range(2, NUM_BLOCKS * 2), 3)
    mapping = torch.tensor([slots[0], -1, slots[1], slots[2], -1])
    for layer, (kept, expected) in enumerate(zip(cache.layers, device, strict=True)):
        k = torch.full((5, 1, 2), 0.5 + layer) + torch.arange(5.0)[:, None, None]
        v = -k
        write_kv(k, v, kept, mapping)
        for place in (0, 2, 3):
            slot = int(mapping[place])
            expected[0, slot // 2, slot % 2] = k[place]
            expected[1, slot // 2, slot % 2] = v[place]
        if not torch.equal(kept, expected):
            return f"layer {layer}: keys or values are not in the slots {mapping.tolist()}"
    return ""
