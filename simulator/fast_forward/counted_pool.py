"""Decides which blocks are taken next where no two sequences share any.

Ids are exact. Cached contents are only counted, since nobody will hit them: a freed table is a
run of blocks in the free queue, those without content in front of those with (P4.1).
"""

from collections import deque

import msgspec

from pagetwin.engine.request import Request

SLACK = 1_000
"""Taken blocks that the queue may keep at its front, and that need no account yet."""

Opening = tuple[str | None, str | None, int]
"""Cache salt, adapter and first token. Prompts that differ in it share no block, not even in
part (P2.4a, P4.6)."""


def opening(request: Request) -> Opening:
    return request.cache_salt, request.adapter_id, request.prompt_token_ids[0]


class FreedTable(msgspec.Struct):
    """Blocks that stand together in the free queue: those of a table that hold nothing, then its
    full ones, last one first."""

    num_empty: int
    num_cached: int
    table: list[int]
    request: Request | None
    opening: Opening | None


class CountedPool:
    """The free queue by id, and what it holds by number."""

    def __init__(self, num_blocks: int, *, enable_prefix_caching: bool) -> None:
        self.queue = list(range(1, num_blocks))
        """The free queue; those before `head` are taken."""
        self.head = 0
        self.enable_prefix_caching = enable_prefix_caching
        self.num_evictions = 0
        self.num_cached_free = 0
        self.openings: set[Opening] = set()
        """Of the requests that live or whose first block is cached, or was: see `account`."""
        self._accounted = 0
        """Place in the queue up to which evictions are counted."""
        self._freed = deque([FreedTable(num_blocks - 1, 0, [], None, None)])
        """What the queue holds, from the front."""

    def take(self, count: int) -> list[int]:
        """The ids of the next blocks; as many must be free."""
        head = self.head
        self.head = head + count
        return self.queue[head : head + count]

    def num_free(self) -> int:
        return len(self.queue) - self.head

    @property
    def free(self) -> list[int]:
        """The free blocks, the next one to be taken first."""
        return self.queue[self.head :]

    def account(self) -> None:
        """Counts the evictions of the blocks that were taken since the last time, and forgets
        them. Until then `num_evictions` is low, `openings` and the cached content too high."""
        if self.enable_prefix_caching:
            self._evict(self.head - self._accounted)
        self._accounted = self.head
        if 2 * self.head > len(self.queue):
            del self.queue[: self.head]
            self.head = self._accounted = 0

    def release(
        self, table: list[int], num_full: int, request: Request, opening: Opening | None
    ) -> None:
        """Frees a table, last block first; its first `num_full` blocks stay cached."""
        if self.head - self._accounted > SLACK:
            self.account()
        self.queue += table[::-1]
        if not self.enable_prefix_caching:
            return
        self._freed.append(FreedTable(len(table) - num_full, num_full, table, request, opening))
        self.num_cached_free += num_full
        if num_full == 0 and opening is not None:
            self.openings.discard(opening)

    def may_share(self, opening: Opening) -> bool:
        """Whether somebody lives, or is cached, whose prompt opens like that."""
        if opening in self.openings:
            self.account()
        return opening in self.openings

    def cached_runs(self) -> list[tuple[Request, list[int]]]:
        """(request, blocks of its first tokens that are cached and free), from the front."""
        return [
            (freed.request, freed.table[: freed.num_cached])
            for freed in self._freed
            if freed.request is not None
        ]

    def _evict(self, count: int) -> None:
        freed = self._freed
        while count > 0:
            first = freed[0]
            size = first.num_empty + first.num_cached
            if count < size:
                from_empty = min(count, first.num_empty)
                first.num_empty -= from_empty
                evicted = count - from_empty
                count = 0
            else:
                freed.popleft()
                evicted = first.num_cached
                count -= size
                if evicted and first.opening is not None:
                    self.openings.discard(first.opening)
            first.num_cached -= evicted
            self.num_cached_free -= evicted
            self.num_evictions += evicted
