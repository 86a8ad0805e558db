"""The sequences that stand in line: waiting for a first admission, or to come back."""

import heapq
from typing import Any

from pagetwin.engine.sequence import Sequence


class AdmissionQueue:
    """Sequences in the order in which they are admitted (docs/policy.md P2.3, P3.2a).

    Under fcfs there are two parts: in front the preempted ones, the latest preempted first;
    behind them the new ones by key. Otherwise everything stands by its key. Entries of sequences
    that were removed stay in the heap until they come to its front.
    """

    def __init__(self, *, returning_first: bool) -> None:
        self._returning_first = returning_first
        self._heap: list[tuple[tuple[Any, ...], int, Sequence]] = []
        self._tickets: dict[str, int] = {}
        self._num_tickets = 0
        self._passed_over: list[tuple[tuple[Any, ...], int, Sequence]] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, seq: Sequence) -> None:
        """Adds a new sequence by its key."""
        self._push((1, *seq.order_key), seq)

    def add_preempted(self, seq: Sequence, *, yielding: bool = False) -> None:
        """Adds a sequence that was just preempted.

        A yielding one goes behind those that were preempted before it (P3.2a).
        """
        if self._returning_first:
            self._push((0, self._num_tickets if yielding else -self._num_tickets), seq)
        else:
            self.add(seq)

    def head(self) -> Sequence | None:
        """The first in line; it stays there."""
        while self._heap:
            _, ticket, seq = self._heap[0]
            if self._tickets.get(seq.seq_id) == ticket:
                return seq
            heapq.heappop(self._heap)
        return None

    def pass_over(self) -> None:
        """Makes the one behind the head the head, until `rejoin`."""
        assert self.head() is not None
        self._passed_over.append(heapq.heappop(self._heap))

    def rejoin(self) -> None:
        """Puts those that were passed over back to where they stood."""
        for entry in self._passed_over:
            heapq.heappush(self._heap, entry)
        self._passed_over.clear()

    def remove(self, seq: Sequence) -> None:
        """Takes a sequence out, wherever it stands."""
        del self._tickets[seq.seq_id]

    def _push(self, key: tuple[Any, ...], seq: Sequence) -> None:
        # The ticket tells an entry from a stale one of the same sequence and key.
        self._num_tickets += 1
        self._tickets[seq.seq_id] = self._num_tickets
        heapq.heappush(self._heap, (key, self._num_tickets, seq))
