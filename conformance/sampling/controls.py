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
        order = np.argsort(law.before, kind="stable")
        v = random.random()
        weights = np.where(p > 0, np.exp((law.scores - law.scores.max()) / HOTTER), 0.0)
        hot = _inverse(weights / weights.sum(), order, random.random())
        controls.hotter.append(facts_of(law, hot, v=v))
        leaked = _leaked(law, random)
        drawn = _inverse(p, order, random.random())
        controls.leaking.append(facts_of(law, drawn if leaked is None else leaked, v=v))
        shared = partner[i] if i < len(partner) else own[i]
        controls.shared.append(facts_of(law, _inverse(p, order, shared), v=v))
        controls.stuck.append(facts_of(law, _inverse(p, order, stuck), v=v))
    return own


def _leaked(law: Draw, random: np.random.Generator) -> int | None:
    """The likeliest token that the law excludes, in LEAK of all cases."""
    if random.random() >= LEAK:
        return None
    outside = np.where(law.support.forbidden, law.scores, -np.inf)
    return int(outside.argmax()) if np.isfinite(outside).any() else None


def _inverse(p: Floats, order: NDArray[np.int64], u: float) -> int:
    """The token at u of the cumulated law, likeliest tokens first, as a sampler by inversion."""
    place = int(np.searchsorted(np.cumsum(p[order]), u, side="right"))
    return int(order[min(place, int(np.count_nonzero(p)) - 1)])
