"""Whether the error rate that a simulation showed can be the one that was promised (exact
binomial tails)."""

from scipy.special import bdtr, bdtrc  # type: ignore[import-untyped]

NEVER = 1e-9
"""A simulation further out than this refutes the promise."""


def is_at_most(alarms: int, runs: int, alpha: float) -> bool:
    """Whether so many alarms can be, where each run raises one with a probability <= alpha."""
    return alarms == 0 or float(bdtrc(alarms - 1, runs, alpha)) > NEVER


def is_at_least(found: int, runs: int, power: float) -> bool:
    """Whether so few finds can be, where each run finds with a probability >= power."""
    return float(bdtr(found, runs, power)) > NEVER
