"""Which tokens a sampler may draw, must be able to draw, and which of them rounding leaves open.

Exact knowledge beats goodness of fit: one token outside the support is a failure, and a token of
mass q that never comes in n draws is one with confidence 1 - (1 - q) ** n. The reference logits
and the engine's differ by rounding, so a token whose membership could flip within `epsilon` is
*borderline* and allowed either way.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Truncation(NamedTuple):
    """What cuts the support; the stages come in this order, after division by temperature."""

    temperature: float = 1.0
    min_p: float = 0.0
    """Least probability relative to the likeliest token's; 0 = off."""
    top_k: int = 0
    """0 = off. Tokens tied with the last are borderline: engines differ over them."""
    top_p: float = 1.0
    """The fewest first tokens whose mass reaches it, the crossing one included; 1 = off."""


class Support(NamedTuple):
    certain: Mask
    """[vocab]: in the support whatever the rounding."""
    borderline: Mask
    """[vocab]: in or out within epsilon."""
    probabilities: Floats
    """[vocab]: of the reference itself, sum 1, 0 outside its own support."""

    @property
    def forbidden(self) -> Mask:
        return ~(self.certain | self.borderline)

    @property
    def is_exact(self) -> bool:
        """Whether nothing is borderline: then `probabilities` are the engine's, but for rounding
        of their values."""
        return not self.borderline.any()


def support_of(logits: Floats, truncation: Truncation, *, epsilon: float) -> Support:
    """The support of logits [vocab] (-inf: masked), each off by at most `epsilon`.

    Raises ValueError if no logit is finite or the temperature is not above 0.
    """
    if not truncation.temperature > 0:
        raise ValueError(f"temperature={truncation.temperature} is not above 0; greedy has no draw")
    if not np.isfinite(logits).any() or np.isnan(logits).any() or (logits == np.inf).any():
        raise ValueError("the logits hold NaN, +inf or no finite number")
    scores = np.asarray(logits, np.float64) / truncation.temperature
    # Two scores may move towards or away from each other, hence twice.
    slack = 2 * epsilon / truncation.temperature
    certain = np.isfinite(scores)
    possible, chosen = certain.copy(), certain.copy()
    if truncation.min_p > 0:
        floor = scores.max() + math.log(truncation.min_p)
        certain &= scores >= floor + slack
        possible &= scores >= floor - slack
        chosen &= scores >= floor
    if 0 < truncation.top_k < len(scores):
        _cut_top_k(scores, truncation.top_k, slack, certain, possible, chosen)
    if truncation.top_p < 1:
        _cut_top_p(scores, truncation.top_p, slack, certain, possible, chosen)
    probabilities = _softmax(scores, chosen)
    return Support(certain, possible & ~certain, probabilities)


def _cut_top_k(
    scores: Floats, k: int, slack: float, certain: Mask, possible: Mask, chosen: Mask
) -> None:
    """A token is in for certain if even all that could come before it leave it a place, and out
    if those that do for certain fill all places."""
    surely_before = _count_above(np.sort(scores[certain]), scores + slack, side="right")
    with_all_near = _count_above(np.sort(scores[possible]), scores - slack, side="left")
    certain &= with_all_near <= k
    possible &= surely_before < k
    largest = np.sort(scores[chosen])[::-1]
    chosen &= scores >= largest[min(k, len(largest)) - 1]


def _cut_top_p(
    scores: Floats, p: float, slack: float, certain: Mask, possible: Mask, chosen: Mask
) -> None:
    """A token is in if the mass before it is below p; that mass is least if only certain tokens
    are before it and all possible ones share the whole, and most the other way round."""
    order = np.argsort(-scores, kind="stable")
    ascending = scores[order][::-1]
    weights = np.exp(scores - scores.max())
    sure_mass = np.concatenate([[0.0], np.cumsum((weights * certain)[order])])
    all_mass = np.concatenate([[0.0], np.cumsum((weights * possible)[order])])
    least = sure_mass[_count_above(ascending, scores + slack, side="right")] / all_mass[-1]
    near = all_mass[_count_above(ascending, scores - slack, side="left")] - weights * possible
    # One of the likeliest tokens is in, even where ties leave open which.
    most = near / max(sure_mass[-1], math.exp(-slack))
    spread = math.expm1(slack)
    possible &= least - spread < p
    certain &= most + spread < p
    kept = (weights * chosen)[order]
    before = np.empty_like(kept)
    before[order] = (np.cumsum(kept) - kept) / kept.sum()
    chosen &= before < p


def _count_above(
    ascending: Floats, bounds: Floats, *, side: Literal["left", "right"]
) -> NDArray[np.int64]:
    """How many of the ascending values are above each bound; with "left", or equal to it."""
    return np.asarray(len(ascending) - np.searchsorted(ascending, bounds, side=side))


def _softmax(scores: Floats, kept: Mask) -> Floats:
    weights = np.where(kept, np.exp(scores - scores.max()), 0.0)
    return np.asarray(weights / weights.sum())


def draws_to_see(mass: float, miss: float) -> int:
    """Draws after which an event of probability `mass` has come but for a chance of `miss`."""
    if not (0 < mass <= 1 and 0 < miss < 1):
        raise ValueError(f"mass={mass} and miss={miss} must lie in (0, 1]")
    return 1 if mass == 1 else math.ceil(math.log(miss) / math.log1p(-mass))
