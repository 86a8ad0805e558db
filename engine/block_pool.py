"""Who holds which KV block, which are free, and what the free ones still cache."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pagetwin.engine.free_queue import FreeQueue
from pagetwin.engine.prefix_keys import BlockKey, Extras

NULL_BLOCK = 0


class BlockPool:
    """Device blocks 1..num_blocks-1 with reference counts and a prefix cache (P4.1 to P4.3).

    A block is in one of three states:

        held            count > 0; may be cached
        free, cached    count = 0, in the queue; a hit takes it out again
        free, empty     count = 0, in the queue
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.evictions = 0
        self.ref_counts = [0] * num_blocks
        self._free = FreeQueue(num_blocks, first=1)
        self._keys: list[BlockKey | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        # Cached blocks by what a partial hit must share at least: parent, first token, extras.
        # The inner dicts serve as ordered sets.
        self._siblings: dict[tuple[bytes, int, Extras], dict[int, None]] = {}

    @property
    def num_free(self) -> int:
        return self._free.num_free

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def empty_blocks(self) -> list[int]:
        """Free blocks that cache nothing, in the order in which they are taken."""
        return [block_id for block_id in self._free if self._keys[block_id] is None]

    def take(self) -> int:
        """Takes the front free block, evicting what it cached; its count becomes 1."""
        block_id = self._free.take()
        if self._keys[block_id] is not None:
            self._forget(block_id)
            self.evictions += 1
        self.ref_counts[block_id] = 1
        return block_id

    @contextmanager
    def without_free_blocks(self) -> Iterator[None]:
        """While it lasts only blocks that are freed meanwhile count as free."""
        hidden, self._free.num_free = self._free.num_free, 0
        try:
            yield
        finally:
            self._free.num_free += hidden

    def hold(self, block_id: int) -> None:
        """Adds a holder; a free block leaves the queue with its content."""
        if self.ref_counts[block_id] == 0:
            self._free.remove(block_id)
        self.ref_counts[block_id] += 1

    def release(self, block_id: int) -> None:
        """Drops a holder; with the last one the block goes to the back of the queue."""
        count = self.ref_counts[block_id]
        if count <= 0:
            raise ValueError(f"block {block_id} is released more often than it is held")
        self.ref_counts[block_id] = count - 1
        if count == 1:
            self._free.put(block_id)

    def is_free(self, block_id: int) -> bool:
        return self.ref_counts[block_id] == 0

    def cache(self, block_id: int, key: BlockKey) -> None:
        """Enters a held block under its key, unless another block is cached under it (P4.6)."""
        if key.key in self._cached or self._keys[block_id] is not None:
            return
        self._cached[key.key] = block_id
        self._keys[block_id] = key
        self._siblings.setdefault(self._sibling_key(key), {})[block_id] = None

    def find(self, key: BlockKey) -> int | None:
        """The block cached under the key, if what it holds really is equal."""
        block_id = self._cached.get(key.key)
        if block_id is None or self._keys[block_id] != key:
            return None
        return block_id

    def find_partial(
        self, parent: bytes, token_ids: tuple[int, ...], extras: Extras
    ) -> tuple[int, int]:
        """(block, m) of the cached block after `parent` that shares most leading tokens.

        At most len(token_ids) tokens count; ties go to the smaller block id; (0, 0) if none
        shares any (P2.4a).
        """
        best, best_run = NULL_BLOCK, 0
        if not token_ids:
            return best, best_run
        for block_id in self._siblings.get((parent, token_ids[0], extras), ()):
            key = self._keys[block_id]
            assert key is not None
            run = _shared_run(key.token_ids, token_ids)
            if run > best_run or (run == best_run and block_id < best):
                best, best_run = block_id, run
        return best, best_run

    def clear_cache(self) -> bool:
        """Drops every key; refuses (False) while any block is held (P4.8)."""
        if self.num_free != self.num_blocks - 1:
            return False
        self._cached.clear()
        self._siblings.clear()
        self._keys = [None] * self.num_blocks
        return True

    def _forget(self, block_id: int) -> None:
        key = self._keys[block_id]
        assert key is not None
        del self._cached[key.key]
        siblings = self._siblings[self._sibling_key(key)]
        del siblings[block_id]
        if not siblings:
            del self._siblings[self._sibling_key(key)]
        self._keys[block_id] = None

    @staticmethod
    def _sibling_key(key: BlockKey) -> tuple[bytes, int, Extras]:
        return key.parent, key.token_ids[0], key.extras

    def check_invariants(self, holders: Iterable[int]) -> None:
        """Recounts everything the slow way; `holders` names a block once for each holder."""
        counts = [0] * self.num_blocks
        for block_id in holders:
            counts[block_id] += 1
        self._free.check_invariants()
        free = set(self._free)
        assert counts[NULL_BLOCK] == 0, "the null block is held"
        assert counts == self.ref_counts, f"counts {self.ref_counts}, recounted {counts}"
        expected = {b for b in range(1, self.num_blocks) if counts[b] == 0}
        assert free == expected, f"free queue {sorted(free)}, recounted {sorted(expected)}"
        cached = {key.key: b for b, key in enumerate(self._keys) if key is not None}
        assert cached == self._cached, "keys of blocks and the cache's map disagree"
        siblings = {b for group in self._siblings.values() for b in group}
        assert siblings == set(cached.values()), "the partial-hit index and the cache disagree"


def _shared_run(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    run = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        run += 1
    return run
