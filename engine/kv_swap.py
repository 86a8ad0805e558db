"""Moves KV blocks between a GPU and pinned host memory, beside the model's work."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from pagetwin.engine.step import BlockCopy
from pagetwin.kernels.block_copy import move_blocks

STAGING_BYTES = 2**27
"""Device memory that blocks pass through; what is swapped beyond it waits for the bus."""
NUM_PARTS = 2


@dataclass(frozen=True)
class _Part:
    """A piece of the staging memory, [num_blocks, planes, ...]."""

    blocks: Tensor
    filled: torch.cuda.Event
    """All that the part is being filled with is there."""
    emptied: torch.cuda.Event
    """All that was in it has been copied on."""


class Swapper:
    """Carries blocks over a side stream, by way of staging memory on the device.

        out   pool --gather--> staging --copy--> host
        in    host --copy--> staging --scatter--> pool
                    side stream        current stream

    The pool is touched in the current stream alone, so in the order of the calls and before what
    is launched after them. Host memory is touched in the side stream alone, so in that order, too.
    Between the two, events see to it that a part of the staging memory is filled before it is
    emptied, and the other way round. The host never waits.
    """

    def __init__(self, pool: Tensor, host: Tensor) -> None:
        """pool [planes, num_blocks, ...] on a GPU; host [num_host_blocks, planes, ...], pinned."""
        self._pool = pool
        self._host = host
        self._side = torch.cuda.Stream(pool.device)  # type: ignore[no-untyped-call]
        block = host[0]
        size = max(1, min(STAGING_BYTES // NUM_PARTS // block.nbytes, len(host)))
        shape = (NUM_PARTS, size, *block.shape)
        staging = torch.empty(shape, dtype=pool.dtype, device=pool.device)
        self._places = torch.arange(size, device=pool.device)
        self._parts = [_Part(blocks, _event(), _event()) for blocks in staging]

    def swap_out(self, pairs: Sequence[BlockCopy]) -> None:
        """Copy blocks of the pool (sources) to host blocks (destinations), none of them twice."""
        current = torch.cuda.current_stream(self._pool.device)
        for chunk in self._chunks(sorted(pairs, key=lambda pair: pair.destination)):
            part = self._next_part(current)
            sources = to_device([pair.source for pair in chunk], self._pool.device)
            move_blocks(
                self._pool, part.blocks.transpose(0, 1), sources, self._places[: len(chunk)]
            )
            part.filled.record(current)
            self._side.wait_event(part.filled)
            with torch.cuda.stream(self._side):
                for staged, kept in _runs([pair.destination for pair in chunk]):
                    self._host[kept].copy_(part.blocks[staged], non_blocking=True)
                part.emptied.record(self._side)

    def swap_in(self, pairs: Sequence[BlockCopy]) -> None:
        """Copy host blocks (sources) to blocks of the pool (destinations), none of them twice."""
        current = torch.cuda.current_stream(self._pool.device)
        for chunk in self._chunks(sorted(pairs)):
            part = self._next_part(current)
            with torch.cuda.stream(self._side):
                for staged, kept in _runs([pair.source for pair in chunk]):
                    part.blocks[staged].copy_(self._host[kept], non_blocking=True)
                part.filled.record(self._side)
            current.wait_event(part.filled)
            destinations = to_device([pair.destination for pair in chunk], self._pool.device)
            move_blocks(
                part.blocks.transpose(0, 1), self._pool, self._places[: len(chunk)], destinations
            )
            part.emptied.record(current)

    def synchronize(self) -> None:
        """Waits until the host blocks hold what was swapped out."""
        self._side.synchronize()

    def _next_part(self, current: torch.cuda.Stream) -> _Part:
        """The part that was used the longest ago; both streams wait until it is empty."""
        part = self._parts.pop(0)
        self._parts.append(part)
        current.wait_event(part.emptied)
        self._side.wait_event(part.emptied)
        return part

    def _chunks(self, pairs: list[BlockCopy]) -> Iterator[list[BlockCopy]]:
        size = len(self._places)
        for first in range(0, len(pairs), size):
            yield pairs[first : first + size]


def to_device(values: Sequence[int], device: torch.device) -> Tensor:
    """int64 [len(values)] on the device; from pinned memory, so that nothing waits."""
    tensor = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _runs(block_ids: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Where ascending ids are consecutive: their places in the list, and the ids."""
    for _, run in groupby(enumerate(block_ids), lambda entry: entry[1] - entry[0]):
        entries = list(run)
        (first_place, first_id), count = entries[0], len(entries)
        yield slice(first_place, first_place + count), slice(first_id, first_id + count)
