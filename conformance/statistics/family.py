"""One budget of false alarms for a whole run, and how evidence is put together within it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

FAMILY_ALPHA = 1e-4
"""Probability that a run over a right engine raises any statistical alarm at all, at most."""
_TOLERANCE = 1e-9


def split_alpha(weights: Mapping[str, float], total: float = FAMILY_ALPHA) -> dict[str, float]:
    """Each property's share of `total`: its weight times it (Bonferroni, so under any dependence).

    Raises ValueError unless weights are positive with a sum of at most 1.
    """
    if not 0 < total < 1:
        raise ValueError(f"total={total} is outside (0, 1)")
    wrong = {name: weight for name, weight in weights.items() if not weight > 0}
    if wrong or math.fsum(weights.values()) > 1 + _TOLERANCE:
        raise ValueError(
            f"weights sum to {math.fsum(weights.values())}, or are not positive: {wrong}; their "
            "sum may be at most 1"
        )
    return {name: weight * total for name, weight in weights.items()}


def mean_log_e(log_es: Sequence[float]) -> float:
    """ln of the mean of e-values: an e-value again, however the parts depend on each other."""
    if not log_es:
        raise ValueError("there is no e-value to average")
    return float(np.logaddexp.reduce(np.array(log_es))) - math.log(len(log_es))


def discoveries(log_es: Mapping[str, float], false_discovery_rate: float) -> list[str]:
    """The findings that e-BH keeps: those whose e-value is at least n / (rate * rank).

    The expected share of false ones among them is at most the rate under any dependence (Wang and
    Ramdas, False discovery rate control with e-values, 2022). Strongest first, equal ones by name.
    """
    ordered = sorted(log_es, key=lambda name: (-log_es[name], name))
    kept = 0
    for rank, name in enumerate(ordered, start=1):
        if log_es[name] >= math.log(len(ordered) / (false_discovery_rate * rank)):
            kept = rank
    return ordered[:kept]
