"""Block tables: which KV blocks each sequence's tokens are in, on the device and on the host.

The contract is the classic one (can_allocate, allocate, can_append, append_slots, fork, free,
can_swap_out, swap_out, can_swap_in, swap_in) over docs/policy.md P4. Every `can_` answers
whether the call after it will succeed; a call that raises has changed nothing.
"""

import enum
from collections.abc import Iterator
from collections.abc import Sequence as TokenSequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pagetwin.engine.block_pool import NULL_BLOCK, BlockPool
from pagetwin.engine.config import CacheConfig
from pagetwin.engine.free_queue import FreeQueue
from pagetwin.engine.prefix_keys import KeyChain
from pagetwin.engine.step import BlockCopy


class AllocStatus(enum.Enum):
    OK = "ok"
    LATER = "later"
    """Not now: too few blocks are free."""
    NEVER = "never"
    """The pool is too small, however empty."""


@dataclass(slots=True)
class BlockTable:
    """One sequence's device blocks, in the order of its tokens.

    block_ids   0  0  7  3  9  4      entries before num_released are the null block (P4.7)
                      ^     ^
          num_released    num_marked  entries before num_marked have been offered to the
                                      prefix cache
    """

    block_ids: list[int] = field(default_factory=list)
    num_released: int = 0
    num_marked: int = 0


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """Cached blocks that a sequence can start from (P2.4)."""

    block_ids: tuple[int, ...] = ()
    source: int = NULL_BLOCK
    """Block whose first `num_partial` tokens are copied; the null block for none."""
    num_partial: int = 0

    def num_tokens(self, block_size: int) -> int:
        return len(self.block_ids) * block_size + self.num_partial

    def without_partial(self) -> "PrefixHit":
        return PrefixHit(self.block_ids)


NO_HIT = PrefixHit()


class AppendedSlots(NamedTuple):
    """What append_slots changed."""

    new_block_ids: tuple[int, ...] = ()
    replaced_blocks: tuple[tuple[int, int], ...] = ()
    copies: tuple[BlockCopy, ...] = ()


NOTHING_APPENDED = AppendedSlots()


@dataclass(slots=True)
class _HostTable:
    block_ids: list[int | None]
    """Host block per entry; None where the device table had the null block."""


class BlockManager:
    """The tables of all sequences over one device pool and one host pool."""

    def __init__(self, cache: CacheConfig) -> None:
        self._config = cache
        self._size = cache.block_size
        self.pool = BlockPool(cache.num_blocks)
        self._tables: dict[str, BlockTable] = {}
        self._host_tables: dict[str, _HostTable] = {}
        self._host_free = FreeQueue(cache.num_host_blocks)
        self._host_counts = [0] * cache.num_host_blocks
        self._copied_out: dict[int, int] = {}
        self._pins: dict[int, int] = {}
        self.cow_copies = 0

    @property
    def num_free_blocks(self) -> int:
        return self.pool.num_free

    @property
    def num_free_host_blocks(self) -> int:
        return self._host_free.num_free

    def get_block_table(self, seq_id: str) -> tuple[int, ...]:
        """The device blocks of the sequence; empty for one that holds none."""
        table = self._tables.get(seq_id)
        return tuple(table.block_ids) if table else ()

    def holds_blocks(self, seq_id: str) -> bool:
        return seq_id in self._tables

    def start_step(self) -> None:
        """Forgets which blocks the step before copied out (P3.3a)."""
        self._copied_out.clear()

    # Prefix cache

    def lookup_prefix(self, keys: KeyChain, token_ids: TokenSequence[int]) -> PrefixHit:
        """The longest cached prefix that leaves at least one token to compute; changes nothing."""
        if not self._config.enable_prefix_caching:
            return NO_HIT
        hits: list[int] = []
        most = (len(token_ids) - 1) // self._size
        while len(hits) < most:
            block_id = self.pool.find(keys.key(len(hits), token_ids))
            if block_id is None:
                break
            hits.append(block_id)
        if not self._config.enable_partial_hits:
            return PrefixHit(tuple(hits))
        start = len(hits) * self._size
        limit = min(self._size - 1, len(token_ids) - 1 - start)
        tokens = tuple(token_ids[start : start + limit])
        source, run = self.pool.find_partial(
            keys.parent_of(len(hits)), tokens, keys.extras_of(len(hits))
        )
        return PrefixHit(tuple(hits), source, run)

    def mark_computed(
        self, seq_id: str, keys: KeyChain, token_ids: TokenSequence[int], num_computed_tokens: int
    ) -> None:
        """Enters the blocks that have become full into the prefix cache (P4.6)."""
        table = self._tables[seq_id]
        num_full = num_computed_tokens // self._size
        if self._config.enable_prefix_caching:
            for index in range(table.num_marked, num_full):
                self.pool.cache(table.block_ids[index], keys.key(index, token_ids))
        table.num_marked = max(table.num_marked, num_full)

    def reset_prefix_cache(self) -> bool:
        """Clears every key; False, and nothing changed, while sequences hold blocks (P4.8)."""
        return self.pool.clear_cache()

    # Allocation

    def can_allocate(
        self, num_slots: int, hit: PrefixHit = NO_HIT, *, watermark: int = 0
    ) -> AllocStatus:
        """Whether a new table of num_slots token slots fits, leaving `watermark` blocks free."""
        num_blocks = self._num_blocks(num_slots)
        if num_blocks > self.pool.num_blocks - 1:
            return AllocStatus.NEVER
        is_free = self.pool.is_free
        free = self.pool.num_free - sum(map(is_free, hit.block_ids))
        if hit.num_partial and is_free(hit.source):
            free -= 1
        needed = num_blocks - len(hit.block_ids)
        return AllocStatus.OK if free - needed >= watermark else AllocStatus.LATER

    def allocate(self, seq_id: str, num_slots: int, hit: PrefixHit = NO_HIT) -> BlockCopy | None:
        """Makes the sequence's table: the hit's blocks, then new ones for num_slots tokens.

        Returns the copy that a partial hit asks for; its source stays pinned until `unpin`.
        """
        self._check_new(seq_id)
        if self.can_allocate(num_slots, hit) is not AllocStatus.OK:
            raise ValueError(f"{seq_id}: {num_slots} slots do not fit; ask can_allocate first")
        for block_id in hit.block_ids:
            self.pool.hold(block_id)
        if hit.num_partial:
            self.pin(hit.source)
        table = BlockTable(list(hit.block_ids), num_marked=len(hit.block_ids))
        while len(table.block_ids) < self._num_blocks(num_slots):
            table.block_ids.append(self.pool.take())
        self._tables[seq_id] = table
        if not hit.num_partial:
            return None
        return BlockCopy(hit.source, table.block_ids[len(hit.block_ids)])

    def pin(self, block_id: int) -> None:
        """Holds a block beside the tables, until `unpin`."""
        self.pool.hold(block_id)
        self._pins[block_id] = self._pins.get(block_id, 0) + 1

    def unpin(self, block_id: int) -> None:
        self._pins[block_id] -= 1
        if not self._pins[block_id]:
            del self._pins[block_id]
        self.pool.release(block_id)

    def num_missing(self, seq_id: str, start: int, end: int) -> int:
        """Free blocks that writing token slots [start, end) would take, copies included."""
        table = self._tables[seq_id].block_ids
        num_blocks = self._num_blocks(end)
        counts = self.pool.ref_counts
        written = table[start // self._size : num_blocks]
        copies = sum(1 for block_id in written if counts[block_id] > 1)
        return max(0, num_blocks - len(table)) + copies

    def can_append(self, seq_id: str, start: int, end: int) -> bool:
        """Whether `append_slots` with the same arguments succeeds."""
        return self.num_missing(seq_id, start, end) <= self.pool.num_free

    def append_slots(self, seq_id: str, start: int, end: int) -> AppendedSlots:
        """Makes token slots [start, end) writable by this sequence alone (P2.2, P4.5)."""
        appended = self.try_append_slots(seq_id, start, end)
        if appended is None:
            raise ValueError(f"{seq_id}: no blocks for slots {start}..{end}; ask can_append first")
        return appended

    def try_append_slots(self, seq_id: str, start: int, end: int) -> AppendedSlots | None:
        """As append_slots; None, and nothing changed, if too few blocks are free."""
        blocks = self._tables[seq_id].block_ids
        num_blocks = -(-end // self._size)
        first = start // self._size
        # In the common case the slots lie in the last block, which nobody shares.
        if num_blocks == len(blocks) == first + 1 and self.pool.ref_counts[blocks[first]] == 1:
            return NOTHING_APPENDED
        counts = self.pool.ref_counts
        shared = [i for i in range(first, min(len(blocks), num_blocks)) if counts[blocks[i]] > 1]
        num_new = max(0, num_blocks - len(blocks))
        if len(shared) + num_new > self.pool.num_free:
            return None
        copies = [self._replace(blocks, index) for index in shared]
        new = [self.pool.take() for _ in range(num_new)]
        blocks.extend(new)
        replaced = tuple((index, blocks[index]) for index in shared) if shared else ()
        return AppendedSlots(tuple(new), replaced, tuple(copies))

    def _replace(self, blocks: list[int], index: int) -> BlockCopy:
        """Gives a table a block of its own in place of one that others hold, too (P4.5)."""
        shared = blocks[index]
        blocks[index] = self.pool.take()
        self.pool.release(shared)
        self.cow_copies += 1
        return BlockCopy(shared, blocks[index])

    def fork(self, parent_id: str, child_id: str) -> None:
        """Gives the child a table equal to the parent's; nothing is copied (P4.4)."""
        self._check_new(child_id)
        parent = self._tables[parent_id]
        for block_id in parent.block_ids[parent.num_released :]:
            self.pool.hold(block_id)
        self._tables[child_id] = BlockTable(
            parent.block_ids.copy(), parent.num_released, parent.num_marked
        )

    def rename(self, old_id: str, new_id: str) -> None:
        """Hands a table over to another sequence id."""
        self._check_new(new_id)
        self._tables[new_id] = self._tables.pop(old_id)

    def free(self, seq_id: str) -> None:
        """Frees the sequence's device blocks, last first; unknown ids are ignored (P4.1)."""
        table = self._tables.pop(seq_id, None)
        if table is not None:
            for block_id in reversed(table.block_ids[table.num_released :]):
                self.pool.release(block_id)

    def release_outside_window(self, seq_id: str, num_computed_tokens: int) -> None:
        """Frees leading blocks that no layer's window reaches any more (P4.7)."""
        table = self._tables[seq_id]
        first_visible = num_computed_tokens - self._config.sliding_window + 1
        num_outside = min(max(0, first_visible) // self._size, len(table.block_ids))
        for index in range(table.num_released, num_outside):
            self.pool.release(table.block_ids[index])
            table.block_ids[index] = NULL_BLOCK
        table.num_released = max(table.num_released, num_outside)

    # Swapping

    def can_swap_out(self, seq_id: str, num_computed_tokens: int) -> bool:
        """Whether the host pool has room for the blocks not yet copied out in this step."""
        table = self._tables[seq_id]
        blocks = table.block_ids[table.num_released : self._num_blocks(num_computed_tokens)]
        needed = sum(1 for block_id in blocks if block_id not in self._copied_out)
        return needed <= self._host_free.num_free

    def swap_out(self, seq_id: str, num_computed_tokens: int) -> tuple[BlockCopy, ...]:
        """Moves the sequence's computed blocks to the host and frees the device's (P3.3a).

        Returns the copies to make (device block, host block); a block that an earlier victim
        of this step copied out is not among them.
        """
        if not self.can_swap_out(seq_id, num_computed_tokens):
            raise ValueError(f"{seq_id}: the host pool has no room; ask can_swap_out first")
        table = self._tables[seq_id]
        host: list[int | None] = []
        copies: list[BlockCopy] = []
        for block_id in table.block_ids[: self._num_blocks(num_computed_tokens)]:
            if block_id == NULL_BLOCK:
                host.append(None)
                continue
            host_id = self._copied_out.get(block_id)
            if host_id is None:
                host_id = self._host_free.take()
                self._copied_out[block_id] = host_id
                copies.append(BlockCopy(block_id, host_id))
            self._host_counts[host_id] += 1
            host.append(host_id)
        self._host_tables[seq_id] = _HostTable(host)
        self.free(seq_id)
        return tuple(copies)

    def can_swap_in(self, seq_id: str, num_slots: int, *, watermark: int = 0) -> bool:
        """Whether the sequence's blocks and new ones up to num_slots tokens fit (P3.3b)."""
        num_null = self._host_tables[seq_id].block_ids.count(None)
        needed = self._num_blocks(num_slots) - num_null
        return self.pool.num_free - needed >= watermark

    def swap_in(self, seq_id: str, num_slots: int) -> tuple[BlockCopy, ...]:
        """Makes a device table again; returns the copies to make (host block, device block)."""
        if not self.can_swap_in(seq_id, num_slots):
            raise ValueError(f"{seq_id}: too few blocks are free; ask can_swap_in first")
        host = self._host_tables[seq_id].block_ids
        table = BlockTable(num_released=host.count(None))
        copies: list[BlockCopy] = []
        for host_id in host:
            if host_id is None:
                table.block_ids.append(NULL_BLOCK)
            else:
                table.block_ids.append(self.pool.take())
                copies.append(BlockCopy(host_id, table.block_ids[-1]))
        while len(table.block_ids) < self._num_blocks(num_slots):
            table.block_ids.append(self.pool.take())
        self._tables[seq_id] = table
        self.free_host(seq_id)
        return tuple(copies)

    def skip_marking(self, seq_id: str, num_computed_tokens: int) -> None:
        """Keeps the blocks that are full already out of the prefix cache (P3.3b)."""
        self._tables[seq_id].num_marked = num_computed_tokens // self._size

    def free_host(self, seq_id: str) -> None:
        """Releases the sequence's host blocks, last first; unknown ids are ignored."""
        host = self._host_tables.pop(seq_id, None)
        if host is None:
            return
        for host_id in reversed(host.block_ids):
            if host_id is not None:
                self._host_counts[host_id] -= 1
                if self._host_counts[host_id] == 0:
                    self._host_free.put(host_id)

    # Books

    def check_invariants(self) -> None:
        """Recounts holders and both pools the slow way; AssertionError on a difference."""
        self.pool.check_invariants(self._holders())
        counts = [0] * len(self._host_counts)
        for host in self._host_tables.values():
            for host_id in host.block_ids:
                if host_id is not None:
                    counts[host_id] += 1
        assert counts == self._host_counts, f"host {self._host_counts}, recounted {counts}"
        self._host_free.check_invariants()
        assert set(self._host_free) == {b for b, count in enumerate(counts) if not count}
        for seq_id, table in self._tables.items():
            released = table.block_ids[: table.num_released]
            assert all(b == NULL_BLOCK for b in released), f"{seq_id}: {table}"
            assert NULL_BLOCK not in table.block_ids[table.num_released :], f"{seq_id}: {table}"

    def _holders(self) -> Iterator[int]:
        for table in self._tables.values():
            yield from table.block_ids[table.num_released :]
        for block_id, count in self._pins.items():
            yield from [block_id] * count

    def _num_blocks(self, num_slots: int) -> int:
        return -(-num_slots // self._size)

    def _check_new(self, seq_id: str) -> None:
        if seq_id in self._tables:
            raise ValueError(f"{seq_id} has a block table already")
