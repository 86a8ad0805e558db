"""The memory that keys and values live in: its layout, its size, and the moves a plan asks for."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.step import BlockCopy, StepPlan


@dataclass(frozen=True, kw_only=True)
class KVCacheLayout:
    """What one block of the cache holds: block_size tokens of every layer, keys and values."""

    num_layers: int
    block_size: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype

    @property
    def bytes_per_block(self) -> int:
        tokens = 2 * self.num_layers * self.block_size
        return tokens * self.num_kv_heads * self.head_size * self.dtype.itemsize

    def num_blocks_for_bytes(self, num_bytes: int) -> int:
        """Blocks, the null block included, that fit `num_bytes`. Raises ConfigError below 2."""
        num_blocks = num_bytes // self.bytes_per_block
        if num_blocks < 2:
            raise ConfigError(
                f"KV cache: {num_bytes} bytes hold {num_blocks} blocks of {self.bytes_per_block} "
                f"bytes, at least 2 are needed; give more memory or lower block_size="
                f"{self.block_size}"
            )
        return num_blocks


class KVCache:
    """The device blocks and the host blocks of one engine."""

    def __init__(
        self,
        layout: KVCacheLayout,
        num_blocks: int,
        num_host_blocks: int = 0,
        *,
        device: torch.device,
        poison: bool = False,
    ) -> None:
        """`poison` fills both pools with NaN, so that a read of what was never written shows."""
        self.layout = layout
        self.device = device
        self.device_pool = _allocate(layout, num_blocks, device, poison=poison)
        """[num_layers, 2, num_blocks, block_size, num_kv_heads, head_size]"""
        self.host_pool = _allocate(layout, num_host_blocks, torch.device("cpu"), poison=poison)
        """Likewise with num_host_blocks; page-locked if the device is a GPU."""
        if device.type == "cuda":
            self.host_pool = self.host_pool.pin_memory()

    @property
    def layers(self) -> tuple[Tensor, ...]:
        """One view per layer: [2, num_blocks, block_size, num_kv_heads, head_size]."""
        return self.device_pool.unbind(0)

    def apply(self, plan: StepPlan) -> None:
        """Run the plan's swap-outs, then its swap-ins, then its copies, each list in its order.

        That is the order of docs/policy.md P4.5; the model runs after it.
        """
        _move(self.device_pool, self.host_pool, plan.swap_outs)
        _move(self.host_pool, self.device_pool, plan.swap_ins)
        _move(self.device_pool, self.device_pool, _in_parallel(plan.copies))


def _allocate(
    layout: KVCacheLayout, num_blocks: int, device: torch.device, *, poison: bool
) -> Tensor:
    # Zeroed even without poison: memory that was another's may hold NaN, and a kernel that masks
    # a weight but not a value would multiply the two.
    return torch.full(
        (
            layout.num_layers,
            2,
            num_blocks,
            layout.block_size,
            layout.num_kv_heads,
            layout.head_size,
        ),
        torch.nan if poison else 0,
        dtype=layout.dtype,
        device=device,
    )


def _in_parallel(copies: Iterable[BlockCopy]) -> list[BlockCopy]:
    """Copies that, all sources read before anything is written, do what `copies` do in turn."""
    origins: dict[int, int] = {}
    for source, destination in copies:
        origins[destination] = origins.get(source, source)
    return [BlockCopy(origin, destination) for destination, origin in origins.items()]


def _move(source_pool: Tensor, target_pool: Tensor, pairs: Iterable[BlockCopy]) -> None:
    """Copy blocks, every source read first; of two pairs with one destination the last holds."""
    source_of = {destination: source for source, destination in pairs}
    if not source_of:
        return
    sources = torch.tensor(list(source_of.values()), device=source_pool.device)
    destinations = torch.tensor(list(source_of), device=target_pool.device)
    blocks = source_pool.index_select(2, sources)
    target_pool.index_copy_(2, destinations, blocks.to(target_pool.device))
