"""When enough seeds were simulated to say on which side of its limits a quantity lies."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from pagetwin.simulator.statistics.intervals import Interval, replication_interval

Answer = Literal["yes", "no", "open"]
MIN_SEEDS = 3


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether all quantities are at or below their limits, with the stated confidence."""

    answer: Answer
    intervals: dict[str, Interval]
    failing: tuple[str, ...] = ()
    """Quantities whose whole interval is above the limit."""


def judge(
    values: Mapping[str, Sequence[float]],
    limits: Mapping[str, float],
    *,
    confidence: float,
    max_looks: int,
) -> Verdict:
    """A look at the runs so far: `values` by quantity, one for each seed.

    The error is spent over all the looks there may be and all the quantities (Bonferroni), so that
    looking after every seed and stopping at the first answer keeps the confidence. Fewer than three
    seeds decide nothing.
    """
    share = (1 - confidence) / (max_looks * max(1, len(limits)))
    intervals = {name: replication_interval(values[name], 1 - share) for name in limits}
    if min((len(values[name]) for name in limits), default=0) < MIN_SEEDS:
        return Verdict(answer="open", intervals=intervals)
    return judge_intervals(intervals, limits)


def judge_intervals(intervals: dict[str, Interval], limits: Mapping[str, float]) -> Verdict:
    """What intervals say that have their share of the error already."""
    below = {name: intervals[name].is_below(limit) for name, limit in limits.items()}
    failing = tuple(name for name, is_below in below.items() if is_below is False)
    if failing:
        return Verdict(answer="no", intervals=intervals, failing=failing)
    answer: Answer = "yes" if all(below.values()) else "open"
    return Verdict(answer=answer, intervals=intervals)
