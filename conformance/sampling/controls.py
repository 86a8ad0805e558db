"""Positive controls: samplers with a known fault, drawn from the same laws as the engine's draws.

A judge that does not catch its control with the draws that it had says nothing about the engine.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagetwin.conformance.sampling.draws import Draw, DrawFacts, facts_of

Floats = NDArray[np.float64]

HOTTER = 1.05
"""Factor of the temperature of the control that is too hot."""
LEAK = 0.02
"""Mass beyond the support that the leaking control lets in."""


class Controls(NamedTuple):
    """Facts of faulty draws, in the order of the laws that they were drawn from."""

    hotter: list[DrawFacts]
    leaking: list[DrawFacts]
    shared: list[DrawFacts]
    """Of the sequences that share a generator, each uses the same numbers."""
    stuck: list[DrawFacts]
    """The generator does not advance from one token to the next."""


def empty_controls() -> Controls:
    return Controls([], [], [], [])


def add_controls(
    controls: Controls, laws: Sequence[Draw], partner: Floats, random: np.random.Generator
) -> Floats:
    """Draws every control once from each law of one sequence.

    `partner` are the uniform numbers of the sequence before, which a shared generator would use
    again; empty for the first of a pair. Returns this sequence's own.
    """
    own = random.random(len(laws))
    stuck = random.random()
    for i, law in enumerate(laws):
        p = law.support.probabilities
        v = random.random()
        hot = _renormalised(np.where(p > 0, np.exp((law.scores - law.scores.max()) / HOTTER), 0.0))
        controls.hotter.append(facts_of(law, _inverse(hot, random.random()), v=v))
        controls.leaking.append(facts_of(law, _inverse(_leaky(law), random.random()), v=v))
        shared = partner[i] if i < len(partner) else own[i]
        controls.shared.append(facts_of(law, _inverse(p, shared), v=v))
        controls.stuck.append(facts_of(law, _inverse(p, stuck), v=v))
    return own


def _leaky(law: Draw) -> Floats:
    """The law with LEAK of mass on the likeliest tokens that it excludes."""
    p = law.support.probabilities
    outside = np.where(law.support.forbidden & np.isfinite(law.scores), law.scores, -np.inf)
    if not np.isfinite(outside).any():
        return p
    leaky = (1 - LEAK) * p
    leaky[outside.argmax()] += LEAK
    return leaky


def _inverse(p: Floats, u: float) -> int:
    """The token at u of the cumulated law, likeliest tokens first, as a sampler by inversion."""
    order = np.argsort(-p, kind="stable")
    place = int(np.searchsorted(np.cumsum(p[order]), u, side="right"))
    return int(order[min(place, int((p > 0).sum()) - 1)])


def _renormalised(weights: Floats) -> Floats:
    return np.asarray(weights / weights.sum())
