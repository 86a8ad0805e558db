"""The memory that keys and values live in: its layout, its size, and the moves a plan asks for."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pagetwin.engine.block_pool import NULL_BLOCK
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.kv_swap import Swapper, to_device
from pagetwin.engine.step import BlockCopy, StepPlan
from pagetwin.kernels.block_copy import copy_blocks
from pagetwin.kernels.dispatch import uses_triton


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
        fill = torch.nan if poison else 0
        block = layout.block_size, layout.num_kv_heads, layout.head_size
        planes = layout.num_layers, 2
        # Zeroed even without poison: memory that was another's may hold NaN, and a kernel that
        # masks a weight but not a value would multiply the two.
        self.device_pool = torch.full(
            (*planes, num_blocks, *block), fill, dtype=layout.dtype, device=device
        )
        """[num_layers, 2, num_blocks, block_size, num_kv_heads, head_size]"""
        # A host block lies in one piece, so that the bus carries it in one.
        host = torch.full((num_host_blocks, *planes, *block), fill, dtype=layout.dtype)
        self.host_pool = host.permute(1, 2, 0, 3, 4, 5)
        """Likewise with num_host_blocks; page-locked if the device is a GPU."""
        self._planes = self.device_pool.flatten(0, 1)
        self._swapper = None
        if device.type == "cuda" and num_host_blocks:
            self._swapper = Swapper(self._planes, host.flatten(1, 2))
            _lock_pages(host)
            weakref.finalize(self, _unlock_pages, host, self._swapper)

    @property
    def layers(self) -> tuple[Tensor, ...]:
        """One view per layer: [2, num_blocks, block_size, num_kv_heads, head_size]."""
        return self.device_pool.unbind(0)

    def apply(self, plan: StepPlan) -> None:
        """Run the plan's swap-outs, then its swap-ins, then its copies, each list in its order.

        That is the order of docs/policy.md P4.5; the model runs after it.
        """
        if self._swapper is None:
            _move(self.device_pool, self.host_pool, plan.swap_outs)
            _move(self.host_pool, self.device_pool, plan.swap_ins)
        else:
            self._swapper.swap_out(_last_to_each(plan.swap_outs))
            self._swapper.swap_in(_last_to_each(plan.swap_ins))
        self._copy(_in_parallel(plan.copies))

    def rehearse(self) -> None:
        """Moves the null block to where it is, for what moves blocks to be compiled and loaded.

        Before the first step: the first host block, if there are any, is written to.
        """
        in_place = [BlockCopy(NULL_BLOCK, NULL_BLOCK)]
        if self._swapper is not None:
            self._swapper.swap_out(in_place)
            self._swapper.swap_in(in_place)
        if uses_triton(self.device_pool):
            self._copy_at_once(in_place)

    def synchronize(self) -> None:
        """Waits until both pools hold what the plans so far have moved."""
        if self._swapper is not None:
            self._swapper.synchronize()
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _copy(self, pairs: list[BlockCopy]) -> None:
        sources = {pair.source for pair in pairs}
        destinations = {pair.destination for pair in pairs}
        if not uses_triton(self.device_pool) or sources & destinations:
            _move(self.device_pool, self.device_pool, pairs)
        elif pairs:
            self._copy_at_once(pairs)

    def _copy_at_once(self, pairs: Sequence[BlockCopy]) -> None:
        sources = to_device([pair.source for pair in pairs], self.device)
        destinations = to_device([pair.destination for pair in pairs], self.device)
        copy_blocks(self._planes, sources, destinations)


def _lock_pages(host: Tensor) -> None:
    """Page-lock memory where it lies: torch's own pinned memory comes in powers of two."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    error = int(cudart.cudaHostRegister(host.data_ptr(), host.nbytes, 0))
    if error:
        raise ConfigError(
            f"KV cache: num_host_blocks={len(host)} are {host.nbytes / 2**30:.1f} GiB, which the "
            f"system does not page-lock (CUDA error {error}); lower num_host_blocks, or raise the "
            "limit (ulimit -l)"
        )


def _unlock_pages(host: Tensor, swapper: Swapper) -> None:
    swapper.synchronize()
    torch.cuda.cudart().cudaHostUnregister(host.data_ptr())  # type: ignore[no-untyped-call]


def _in_parallel(copies: Iterable[BlockCopy]) -> list[BlockCopy]:
    """Copies that, all sources read before anything is written, do what `copies` do in turn."""
    origins: dict[int, int] = {}
    for source, destination in copies:
        origins[destination] = origins.get(source, source)
    return [BlockCopy(origin, destination) for destination, origin in origins.items()]


def _last_to_each(pairs: Iterable[BlockCopy]) -> list[BlockCopy]:
    """Of two pairs with one destination the last."""
    source_of = {destination: source for source, destination in pairs}
    return [BlockCopy(source, destination) for destination, source in source_of.items()]


def _move(source_pool: Tensor, target_pool: Tensor, pairs: Iterable[BlockCopy]) -> None:
    """Copy blocks, every source read first; of two pairs with one destination the last holds."""
    if not (pairs := _last_to_each(pairs)):
        return
    sources = torch.tensor([pair.source for pair in pairs], device=source_pool.device)
    destinations = torch.tensor([pair.destination for pair in pairs], device=target_pool.device)
    blocks = source_pool.index_select(2, sources)
    target_pool.index_copy_(2, destinations, blocks.to(target_pool.device))
