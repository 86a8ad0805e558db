"""How many greedy choices rounding may turn, and where errors stand.

One near tie is no evidence against an engine. Too many are: with the reference's margins known, the
number of flips is a sum of unlike coin throws (statistics/poisson_binomial.py), and an engine that
computes in a lower precision than it says, or reads a stale scale, shows in it. A lost or stale KV
block shows as errors that jump at block edges.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # type: ignore[import-untyped]

from pagetwin.conformance.statistics.poisson_binomial import at_least, flip_probabilities

Floats = NDArray[np.float64]

_FEWEST = 20


class GreedyChoices(NamedTuple):
    """Greedy choices against reference logits, position by position."""

    margins: Floats
    """[positions]: gap between the reference's best and second logit."""
    flipped: NDArray[np.bool_]
    """[positions]: the engine took another token than the reference's best."""


def choices_of(logits: Floats, tokens: NDArray[np.int64]) -> GreedyChoices:
    """Reference logits [positions, vocab], teacher-forced, and the engine's tokens [positions]."""
    best = np.partition(logits, -2, axis=-1)[:, -2:]
    return GreedyChoices(best[:, 1] - best[:, 0], logits.argmax(axis=-1) != tokens)


def flips_p_value(choices: GreedyChoices, *, error: float) -> float:
    """Probability of so many flips where a logit's error has the standard deviation `error`."""
    return at_least(int(choices.flipped.sum()), flip_probabilities(choices.margins, error))


def block_edge_p_value(errors: Floats, positions: NDArray[np.int64], block_size: int) -> float:
    """One-sided rank-sum test: are errors at the first two positions of blocks larger?

    errors [n] of any kind, at absolute positions [n]; by the normal approximation, which is close
    from some tens on each side (Mann and Whitney, 1947). 1 where one side has fewer than 20.
    """
    at_edge = positions % block_size < 2
    edges, others = int(at_edge.sum()), int((~at_edge).sum())
    if min(edges, others) < _FEWEST:
        return 1.0
    ranks = np.empty(len(errors))
    ranks[np.argsort(errors, kind="stable")] = np.arange(1, len(errors) + 1)
    statistic = float(ranks[at_edge].sum()) - edges * (edges + 1) / 2
    deviation = np.sqrt(edges * others * (edges + others + 1) / 12)
    return float(ndtr(-(statistic - edges * others / 2) / deviation))
