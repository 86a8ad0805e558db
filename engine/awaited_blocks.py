"""Blocks that a waiting sequence may hit a step later, since somebody computes them now
(docs/policy.md P2.4e)."""

from collections.abc import Iterable
from typing import NamedTuple

from pagetwin.engine.block_manager import PrefixHit
from pagetwin.engine.plan_draft import PlanDraft
from pagetwin.engine.prefix_keys import BlockKey
from pagetwin.engine.scheduler_state import SchedulerState
from pagetwin.engine.sequence import Sequence
from pagetwin.engine.step import ScheduledSequence


class AwaitedBlock(NamedTuple):
    """A block that somebody waits for, and its place in a sequence's table."""

    place: int
    key: BlockKey

    def is_block_of(self, seq: Sequence) -> bool:
        """Whether the sequence could hit it; then it begins with the same blocks up to this one."""
        size = len(self.key.token_ids)
        if self.place >= _most_hits(seq, size):
            return False
        return seq.keys.key(self.place, seq.token_ids) == self.key


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

    def next_of(self, seq: Sequence, hit: PrefixHit) -> AwaitedBlock | None:
        """The one that the sequence could hit next, behind that hit; None if it is not there."""
        place = len(hit.block_ids)
        if place >= _most_hits(seq, self._size):
            return None
        key = seq.keys.key(place, seq.token_ids)
        self._update()
        return AwaitedBlock(place, key) if self._keys.get(key.key) == key else None

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


def _most_hits(seq: Sequence, block_size: int) -> int:
    """Full blocks that it could hit, since at least one token must be computed (P2.4)."""
    return (len(seq.token_ids) - 1) // block_size
