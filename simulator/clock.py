"""Decides the unit of virtual time: integer ticks of one picosecond.

Integers add up to the same sum in any order, so that a closed form over many steps equals
stepping exactly. Seconds appear only at the edges: arrivals, results, files.
"""

TICKS_PER_S = 10**12


def to_ticks(seconds: float) -> int:
    """The nearest tick; ValueError or OverflowError if `seconds` is not finite."""
    return round(seconds * TICKS_PER_S)


def to_seconds(ticks: int) -> float:
    return ticks / TICKS_PER_S
