"""Decides how the times between successive tokens of a sequence are counted (inter-token latency).

There are too many to keep: they are counted in buckets, each `WIDTH` wide relative to its lower
edge, so that a percentile is known to half of that.
"""

import math
from collections.abc import Iterable

WIDTH = 0.005
_SCALE = 1 / math.log1p(WIDTH)


def bucket_of(ticks: int) -> int:
    """The bucket of a gap of at least a tick."""
    return math.floor(math.log(ticks) * _SCALE)


def middle_of(bucket: int) -> float:
    """Ticks that stand for the gaps in a bucket."""
    return math.exp((bucket + 0.5) / _SCALE)


class TokenGaps:
    """Counts by bucket, over all sequences of a replica."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self._latest: dict[str, int] = {}
        self._known = (0, 0)
        """The gap before, and its bucket: most gaps of a step are equal."""

    def token(self, seq_id: str, now: int) -> None:
        """A sequence got a token."""
        before = self._latest.get(seq_id)
        self._latest[seq_id] = now
        if before is not None:
            self._count(now - before, 1)

    def steps(
        self,
        seq_ids: Iterable[str],
        num_steps: int,
        *,
        now: int,
        duration: int,
        first: int,
        growth: int,
    ) -> None:
        """Each of the sequences got a token in each of so many steps, which ended at `now`.

        The first took `first` ticks, and from the second on each took `growth` longer than the one
        before, so that together they took `duration`.
        """
        start, latest, num_rows = now - duration, self._latest, 0
        for seq_id in seq_ids:
            num_rows += 1
            before = latest.get(seq_id, start)
            if before != start:  # it had sat out some steps
                self._count(start + first - before, 1)
                self._count(first, -1)
            latest[seq_id] = now
        self.line(first, 0, 1, num_rows)
        if num_steps > 1:
            later = num_steps - 1
            grown = growth * (later * (later - 1) // 2)
            self.line((duration - first - grown) // later, growth, later, num_rows)

    def forget(self, seq_id: str) -> None:
        """The sequence has ended."""
        self._latest.pop(seq_id, None)

    def _count(self, gap: int, times: int) -> None:
        if gap != self._known[0]:
            self._known = gap, bucket_of(gap)
        bucket = self._known[1]
        self.counts[bucket] = self.counts.get(bucket, 0) + times

    def line(self, first: int, growth: int, num_steps: int, num_rows: int) -> None:
        """Counts gaps of first, first + growth, ..., `num_rows` times each."""
        step = 0
        while step < num_steps:
            gap = first + step * growth
            bucket = bucket_of(gap)
            after = num_steps
            if growth > 0:
                # The first step that is past the bucket's upper edge, by arithmetic; a step more or
                # less for rounding does not matter to which side of an edge it counts.
                edge = math.exp((bucket + 1) / _SCALE)
                after = min(num_steps, max(step + 1, math.ceil((edge - first) / growth)))
            self.counts[bucket] = self.counts.get(bucket, 0) + (after - step) * num_rows
            step = after


def merged(parts: Iterable[TokenGaps]) -> dict[int, int]:
    """Counts by bucket, over several replicas."""
    total: dict[int, int] = {}
    for part in parts:
        for bucket, count in part.counts.items():
            total[bucket] = total.get(bucket, 0) + count
    return total
