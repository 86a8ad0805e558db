"""Decides which block is given out next, who holds it, and which content it still offers."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from pagetwin.simulator.branches import Branches
from pagetwin.simulator.prefix_key import TOKEN, Extras, PrefixKey, branch_of

NULL_BLOCK = 0


class BlockPool:
    """The device blocks: one free queue, a count of holders, and the prefix cache (P4)."""

    def __init__(self, num_blocks: int, *, enable_prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.enable_prefix_caching = enable_prefix_caching
        # P4.1: one queue, at first in id order 1..N-1. An OrderedDict is a queue whose middle
        # can be left in O(1) (P4.3).
        self.free: OrderedDict[int, None] = OrderedDict((i, None) for i in range(1, num_blocks))
        self.holders = [0] * num_blocks
        self.cached: dict[bytes, int] = {}
        """By the digest of the block's key."""
        self.key_of: list[PrefixKey | None] = [None] * num_blocks
        self.branches = Branches()
        self.num_evictions = 0
        self.num_shared = 0
        """Blocks that more than one holds."""
        self.num_repeats = 0
        """Holders of those, each block's first one left out."""

    @property
    def num_free(self) -> int:
        return len(self.free)

    def take(self) -> int:
        """Takes the block at the front of the queue; the content it still offered is evicted."""
        return self.take_blocks(1)[0]

    def take_blocks(self, count: int) -> list[int]:
        """Takes that many, one after the other."""
        taken: list[int] = []
        for _ in range(count):
            block_id, _ = self.free.popitem(last=False)
            if self.key_of[block_id] is not None:
                self._uncache(block_id)
                self.num_evictions += 1
            self.holders[block_id] = 1
            taken.append(block_id)
        return taken

    def hold(self, block_id: int) -> None:
        """Adds a holder; a free block leaves the queue (P4.3)."""
        self.free.pop(block_id, None)
        self.holders[block_id] += 1
        self.num_shared += self.holders[block_id] == 2
        self.num_repeats += self.holders[block_id] >= 2

    def release(self, block_id: int) -> None:
        """Drops a holder; the last one puts the block at the back of the queue (P4.1)."""
        assert self.holders[block_id] > 0, f"block {block_id} is released but nobody holds it"
        left = self.holders[block_id] - 1
        self.holders[block_id] = left
        if left == 0:
            self.free[block_id] = None
            return
        self.num_repeats -= 1
        self.num_shared -= left == 1

    def release_table(self, table: list[int]) -> None:
        """Frees a whole table, last block first (P4.1), and empties it."""
        for block_id in reversed(table):
            if block_id != NULL_BLOCK:
                self.release(block_id)
        table.clear()

    def fork(self, table: Sequence[int]) -> list[int]:
        """A second table with the same entries, nothing copied (P4.4)."""
        for block_id in table:
            if block_id != NULL_BLOCK:
                self.hold(block_id)
        return list(table)

    def is_shared(self, block_id: int) -> bool:
        return block_id != NULL_BLOCK and self.holders[block_id] > 1

    def num_free_among(self, block_ids: Iterable[int]) -> int:
        return sum(self.holders[block_id] == 0 for block_id in block_ids)

    def cache(self, block_id: int, key: PrefixKey) -> None:
        """Enters a full block under its key, unless another block has that key (P4.6)."""
        if not self.enable_prefix_caching or key.digest in self.cached:
            return
        self.cached[key.digest] = block_id
        self.key_of[block_id] = key
        self.branches.add(key.branch, block_id)

    def full_hits(self, keys: Iterable[PrefixKey]) -> list[int]:
        """The longest run of cached blocks that starts the chain (P2.4)."""
        hits: list[int] = []
        for key in keys:
            block_id = self.cached.get(key.digest, NULL_BLOCK)
            if block_id == NULL_BLOCK or self.key_of[block_id] != key:
                break
            hits.append(block_id)
        return hits

    def partial_hit(
        self, parent: bytes, extras: Extras, token_ids: Sequence[int]
    ) -> tuple[int, int]:
        """(source block, m) of the best partial hit of `token_ids`; m = 0: none (P2.4a)."""
        best_run, best_block = 0, NULL_BLOCK
        if not token_ids:
            return best_block, best_run
        for block_id in self.branches.blocks(branch_of(parent, extras, token_ids[0])):
            key = self.key_of[block_id]
            assert key is not None
            rest = memoryview(key.rest).cast(TOKEN)
            run = 1 + _common_run(rest, token_ids[1:])
            if run > best_run:  # in id order, so that ties keep the smaller id
                best_run, best_block = run, block_id
        return best_block, best_run

    def clear_cache(self) -> bool:
        """Forgets every key, unless a block is held (P4.8)."""
        if self.num_free < self.num_blocks - 1:
            return False
        self.cached.clear()
        self.key_of = [None] * self.num_blocks
        self.branches.clear()
        return True

    def check_invariants(self, held: Iterator[int]) -> None:
        """Recounts holders from `held` (every table entry and pin) and the cache's three maps."""
        recount = [0] * self.num_blocks
        for block_id in held:
            if block_id != NULL_BLOCK:
                recount[block_id] += 1
        assert recount == self.holders, "holders differ from the tables and pins"
        assert self.num_shared == sum(count > 1 for count in recount)
        assert self.num_repeats == sum(max(count - 1, 0) for count in recount)
        free = {block_id for block_id in range(1, self.num_blocks) if recount[block_id] == 0}
        assert free == set(self.free), "the free queue is not the blocks that nobody holds"
        keys = {block: key for block, key in enumerate(self.key_of) if key is not None}
        digests = {block: key.digest for block, key in keys.items()}
        assert {block: digest for digest, block in self.cached.items()} == digests
        self.branches.check_invariants((key.branch, block) for block, key in keys.items())

    def _uncache(self, block_id: int) -> None:
        key = self.key_of[block_id]
        assert key is not None
        self.key_of[block_id] = None
        del self.cached[key.digest]
        self.branches.remove(key.branch, block_id)


class HostPool:
    """The host blocks that swapped-out sequences use (P3.3a)."""

    def __init__(self, num_blocks: int) -> None:
        self.free: OrderedDict[int, None] = OrderedDict((i, None) for i in range(num_blocks))
        self.holders: dict[int, int] = dict.fromkeys(range(num_blocks), 0)

    @property
    def num_free(self) -> int:
        return len(self.free)

    def take(self) -> int:
        block_id, _ = self.free.popitem(last=False)
        self.holders[block_id] = 1
        return block_id

    def hold(self, block_id: int) -> None:
        self.holders[block_id] += 1

    def release_table(self, table: list[int | None]) -> None:
        """Releases in table order last-first; a block is free when its last holder has left."""
        for block_id in reversed(table):
            if block_id is None:
                continue
            self.holders[block_id] -= 1
            if self.holders[block_id] == 0:
                self.free[block_id] = None
        table.clear()

    def check_invariants(self, held: Iterator[int | None]) -> None:
        recount = dict.fromkeys(self.holders, 0)
        for block_id in held:
            if block_id is not None:
                recount[block_id] += 1
        assert recount == self.holders, "host holders differ from the swapped tables"
        free = {block_id for block_id, count in recount.items() if count == 0}
        assert free == set(self.free), "the host queue is not the blocks that nobody holds"


def _common_run(a: Sequence[int], b: Sequence[int]) -> int:
    run = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        run += 1
    return run
