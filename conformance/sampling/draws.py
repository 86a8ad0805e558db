"""What a reference knows of one draw, boiled down to a few numbers.

A vocabulary's worth of probabilities for each of many thousand draws fits no memory; what the
judges need of each is little, and is taken while its logits are at hand.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagetwin.conformance.oracles.sampling import adjusted_logits, truncation_of
from pagetwin.conformance.statistics.pit import mass_before
from pagetwin.conformance.statistics.support import Support, support_of
from pagetwin.engine.request import Request

Floats = NDArray[np.float64]


class Place(NamedTuple):
    """Which draw it is."""

    request_id: str
    sample_index: int
    output_index: int

    def __str__(self) -> str:
        return f"output token {self.output_index} of {self.request_id}/{self.sample_index}"


class Draw(NamedTuple):
    """A draw's law according to the reference, with what every token drawn from it needs."""

    place: Place
    scores: Floats
    """[vocab]: adjusted logits over the temperature; -inf: masked."""
    support: Support
    before: Floats
    """[vocab]: mass of the tokens that come before each, likeliest first."""
    edge: int | None
    """The unlikeliest token of the support, which a limit off by one would lose; None where
    nothing is cut off."""


class DrawFacts(NamedTuple):
    """What the judges need to know of one drawn token."""

    place: Place
    token: int
    is_allowed: bool
    """In the support, borderline tokens included."""
    u: float | None
    """Randomised PIT. None where a token is borderline: the engine's law is then not known."""
    edge_mass: float
    """Probability of the unlikeliest token that is certainly in the support; 0 if all are."""
    is_edge: bool
    lag: float | None
    """By how much the drawn token's score plus noise is below the best; None: noise unknown."""


def law_of(
    logits: Floats,
    request: Request,
    output_token_ids: Sequence[int],
    *,
    sample_index: int = 0,
    epsilon: float,
) -> Draw:
    """The law of the next token after `output_token_ids`, from raw reference logits [vocab] that
    are off the engine's by at most `epsilon`."""
    truncation = truncation_of(request.sampling_params)
    adjusted = adjusted_logits(logits, request, output_token_ids)
    place = Place(request.request_id, sample_index, len(output_token_ids))
    support = support_of(adjusted, truncation, epsilon=epsilon)
    before = mass_before(support.probabilities)
    return Draw(place, adjusted / truncation.temperature, support, before, _edge(support))


def facts_of(draw: Draw, token: int, *, v: float, noise: Floats | None = None) -> DrawFacts:
    """What is worth keeping of the draw of `token`; v is the checker's own uniform number."""
    support, edge = draw.support, draw.edge
    u = None
    if support.is_exact:
        u = min(float(draw.before[token] + v * support.probabilities[token]), _BELOW_ONE)
    return DrawFacts(
        place=draw.place,
        token=token,
        is_allowed=bool(support.certain[token] or support.borderline[token]),
        u=u,
        edge_mass=0.0 if edge is None else float(support.probabilities[edge]),
        is_edge=token == edge,
        lag=None if noise is None else _lag(draw, token, noise),
    )


_BELOW_ONE = math.nextafter(1.0, 0.0)


def _edge(support: Support) -> int | None:
    if not support.is_exact or not support.forbidden.any() or support.certain.sum() < 2:
        return None
    masses = np.where(support.certain, support.probabilities, np.inf)
    return int(masses.argmin())


def _lag(draw: Draw, token: int, noise: Floats) -> float:
    """A borderline token may be missing from the engine's support, so it cannot be the best."""
    scores = draw.scores + noise
    if draw.support.forbidden[token]:
        return math.inf
    return max(0.0, float(scores[draw.support.certain].max(initial=-np.inf) - scores[token]))
