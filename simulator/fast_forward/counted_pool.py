"""Decides which blocks are taken next where no two sequences share any.

Ids are exact. Cached contents are only counted, since nobody will hit them: a freed table is a
run of blocks in the free queue, those without content in front of those with (P4.1).
"""

from collections import deque
from typing import NamedTuple

from pagetwin.engine.request import Request

Opening = tuple[str | None, str | None, int]
"""Cache salt, adapter and first token. Prompts that differ in it share no block, not even in
part (P2.4a, P4.6)."""


def opening(request: Request) -> Opening:
    return request.cache_salt, request.adapter_id, request.prompt_token_ids[0]


class CachedRun(NamedTuple):
    """Free blocks with content: the first full blocks of a request's tokens, last one first."""

    request: Request
    block_ids: tuple[int, ...]
    """In table order."""


class CountedPool:
    """The free queue by id, and what it holds by number."""

    def __init__(self, num_blocks: int, *, enable_prefix_caching: bool) -> None:
        self.free: deque[int] = deque(range(1, num_blocks))
        self.enable_prefix_caching = enable_prefix_caching
        self.num_evictions = 0
        self.num_cached_free = 0
        self.openings: set[Opening] = set()
        """Of the requests that live or whose first block is cached."""
        self._num_plain = num_blocks - 1
        """Blocks at the front of the queue, before the first run, that hold nothing."""
        self._runs: deque[tuple[int, CachedRun, int]] = deque()
        """(cached blocks left of the run, the run, blocks without content behind it)."""

    def take(self, count: int) -> list[int]:
        """The ids of the next blocks; as many must be free."""
        free = self.free
        block_ids = [free.popleft() for _ in range(count)]
        if self.enable_prefix_caching:
            self.count_taken(count)
        return block_ids

    def count_taken(self, count: int) -> None:
        """Counts blocks that were taken off the front of `free`: their content is evicted."""
        if count <= self._num_plain:
            self._num_plain -= count
            return
        count -= self._num_plain
        self._num_plain = 0
        runs = self._runs
        while count > 0:
            left, run, num_behind = runs[0]
            evicted = min(left, count)
            self.num_evictions += evicted
            self.num_cached_free -= evicted
            count -= evicted
            if evicted < left:
                runs[0] = (left - evicted, run, num_behind)
                return
            runs.popleft()
            self.openings.discard(opening(run.request))
            skipped = min(num_behind, count)
            count -= skipped
            self._num_plain = num_behind - skipped

    def release(self, table: list[int], num_full: int, request: Request) -> None:
        """Frees a table, last block first; its first `num_full` blocks stay cached."""
        self.free.extend(reversed(table))
        if not self.enable_prefix_caching:
            return
        num_empty = len(table) - num_full
        if self._runs:
            left, run, num_behind = self._runs[-1]
            self._runs[-1] = (left, run, num_behind + num_empty)
        else:
            self._num_plain += num_empty
        if num_full == 0:
            self.openings.discard(opening(request))
            return
        self._runs.append((num_full, CachedRun(request, tuple(table[:num_full])), 0))
        self.num_cached_free += num_full

    def cached_runs(self) -> list[tuple[Request, tuple[int, ...]]]:
        """(request, blocks of its first tokens that are cached and free), from the front."""
        return [(run.request, run.block_ids[:left]) for left, run, _ in self._runs]
