"""One budget of false alarms for a whole run."""

import math
from collections.abc import Mapping

FAMILY_ALPHA = 1e-4
"""Probability that a run over a right engine raises any statistical alarm at all, at most."""


def split_alpha(weights: Mapping[str, float], total: float = FAMILY_ALPHA) -> dict[str, float]:
    """Each one's share of `total`, by its weight among all (Bonferroni, so under any dependence).

    Raises ValueError unless all weights are positive.
    """
    if not 0 < total < 1:
        raise ValueError(f"total={total} is outside (0, 1)")
    wrong = {name: weight for name, weight in weights.items() if not weight > 0}
    if wrong:
        raise ValueError(f"weights must be positive, and these are not: {wrong}")
    every = math.fsum(weights.values())
    return {name: total * weight / every for name, weight in weights.items()}
