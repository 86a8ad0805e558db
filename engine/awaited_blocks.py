"""Blocks that a waiting sequence may hit a step later, since somebody computes them now
(docs/policy.md P2.4e)."""

from collections.abc import Iterable

from pagetwin.engine.block_manager import PrefixHit
from pagetwin.engine.plan_draft import PlanDraft
from pagetwin.engine.prefix_keys import BlockKey
from pagetwin.engine.scheduler_state import SchedulerState
from pagetwin.engine.sequence import Sequence
from pagetwin.engine.step import ScheduledSequence


class BlocksBeingComputed:
    """The blocks that the step in flight and a plan in the making fill, by their keys.

    Made when first asked; later questions add what the plan has got since.
    """

    def __init__(self, state: SchedulerState, draft: PlanDraft) -> None:
        self._state = state
        self._size = state.cache.block_size
        self._draft = draft
        self._keys: dict[bytes, BlockKey] = {}
        self._steps_to_add = [plan.scheduled for plan in state.in_flight]
        self._num_added = 0
        self._awaited: dict[int, dict[bytes, BlockKey]] = {}
        """By place in the sequence: blocks that somebody waits for."""
        self._evictions = state.blocks.pool.evictions

    def are_awaited(self, seq: Sequence, hit: PrefixHit) -> bool:
        """Whether one of them is the next block that the sequence could hit behind that hit."""
        index = len(hit.block_ids)
        if index >= self._most_hits(seq):
            return False
        key = seq.keys.key(index, seq.token_ids)
        self._update()
        if self._keys.get(key.key) != key:
            return False
        self._awaited.setdefault(index, {})[key.key] = key
        return True

    def are_awaited_like_before(self, seq: Sequence) -> bool:
        """Whether the sequence waits for what one before it in line waits for, too.

        Its look-up would find the same hits, for its first blocks are the same: where hundreds
        wait for one prefix, one of them looks.
        """
        pool = self._state.blocks.pool
        if pool.evictions != self._evictions:
            # A block of the hits may be gone.
            self._awaited.clear()
            self._evictions = pool.evictions
        for index, awaited in self._awaited.items():
            if index < self._most_hits(seq):
                key = seq.keys.key(index, seq.token_ids)
                if awaited.get(key.key) == key:
                    return True
        return False

    def _most_hits(self, seq: Sequence) -> int:
        """Full blocks that it could hit, since one token at least must be computed (P2.4)."""
        return (len(seq.token_ids) - 1) // self._size

    def _update(self) -> None:
        while self._steps_to_add:
            self._add(self._steps_to_add.pop())
        scheduled = self._draft.scheduled
        if self._num_added < len(scheduled):
            self._add(scheduled[self._num_added :])
            self._num_added = len(scheduled)

    def _add(self, scheduled: Iterable[ScheduledSequence]) -> None:
        size = self._size
        for entry in scheduled:
            start = entry.num_computed_tokens
            if start % size + entry.num_scheduled_tokens < size:
                continue
            seq = self._state.sequences.get(entry.seq_id)
            if seq is None:
                continue  # It has ended since; nothing of it will be cached.
            # A token that is not known yet makes no key.
            end = min(start + entry.num_scheduled_tokens, len(seq.token_ids))
            for index in range(start // size, end // size):
                key = seq.keys.key(index, seq.token_ids)
                self._keys[key.key] = key
