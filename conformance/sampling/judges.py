"""Judges of a sampler, from the sharpest to the broadest: pure functions of what is known of its
draws. Each returns what it found; a p-value or e-value at or beyond its alpha is a failure.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pagetwin.conformance.sampling.draws import DrawFacts
from pagetwin.conformance.statistics import pit
from pagetwin.conformance.statistics.e_process import EProcess, uniform
from pagetwin.conformance.statistics.poisson_binomial import at_most

LAGS = (1, 2)


class Judgement(NamedTuple):
    """What a judge made of the draws."""

    num_draws: int
    """Draws that it could use."""
    failure: str | None
    """In words; None if the sampler may be right."""
    alpha: float
    """False-alarm probability that the judgement may have spent; 0 if it is exact."""
    statistic: float
    """How close it was: ln of an e-value, ln of a p-value, or a lag, as the judge says."""


def judge_support(draws: Sequence[DrawFacts]) -> Judgement:
    """No token outside the support is ever drawn. The statistic counts those that were."""
    wrong = [draw for draw in draws if not draw.is_allowed]
    failure = None
    if wrong:
        failure = f"{wrong[0].place} is {wrong[0].token}, which its parameters exclude"
    return Judgement(len(draws), failure, 0.0, float(len(wrong)))


def judge_edge(draws: Sequence[DrawFacts], *, alpha: float) -> Judgement:
    """The unlikeliest token of each support is drawn as often as it should be, at least.

    Finds a limit that leaves out the token which crosses it. The statistic is the ln of the
    probability of so few.
    """
    usable = [draw for draw in draws if draw.edge_mass > 0]
    seen = sum(draw.is_edge for draw in usable)
    masses = [draw.edge_mass for draw in usable]
    p = at_most(seen, masses) if usable else 1.0
    failure = None
    if p <= alpha:
        failure = (
            f"the unlikeliest token of the support came {seen} times in {len(usable)} draws, "
            f"{math.fsum(masses):.1f} were expected (p = {p:.2g})"
        )
    return Judgement(len(usable), failure, alpha, math.log(max(p, np.finfo(np.float64).tiny)))


def judge_coupled(draws: Sequence[DrawFacts], *, tolerance: float) -> Judgement:
    """With the noise known, each token is the one that wins, but for rounding.

    `tolerance` is what rounding may do to the difference of two scores: twice the logits' error
    over the temperature, and the noise's own. The statistic is the largest lag.
    """
    usable = [(draw.lag, draw) for draw in draws if draw.lag is not None]
    lag, worst = max(usable, key=lambda pair: pair[0], default=(0.0, None))
    failure = None
    if worst is not None and lag > tolerance:
        failure = (
            f"{worst.place} is {worst.token}, which loses by {lag:.3g} against another token "
            f"with the known noise; rounding explains {tolerance:.3g}"
        )
    return Judgement(len(usable), failure, 0.0, lag)


def judge_pit(draws: Sequence[DrawFacts], *, alpha: float, subject: str = "pit") -> Judgement:
    """Tokens have the reference's law: temperature, truncation and renormalisation are right."""
    values = np.array([draw.u for draw in draws if draw.u is not None])
    process = uniform(pit.NUM_BINS, subject=subject)
    process = process.add(pit.bin_counts(values), subject=subject)
    return _judged(process, alpha, "drawn tokens do not follow the reference's probabilities")


def judge_lags(draws: Sequence[DrawFacts], *, alpha: float) -> Judgement:
    """A request's draws are independent of its own earlier ones. `draws`: in output order within
    each request. Lags share alpha."""
    parts = []
    for lag in LAGS:
        columns = [column for column in _by_sequence(draws) if len(column) > lag]
        pairs = [pit.lagged_pairs(column, lag) for column in columns]
        found = _judge_pairs(pairs, alpha / len(LAGS), f"draws {lag} apart depend on each other")
        parts.append(found)
    return _worst(parts, alpha)


def judge_across(draws: Sequence[DrawFacts], *, alpha: float) -> Judgement:
    """Requests with one prompt that run side by side draw independently of each other."""
    pairs = pit.across_pairs(_by_sequence(draws))
    return _judge_pairs([pairs], alpha, "requests that run side by side share their noise")


def _by_sequence(draws: Sequence[DrawFacts]) -> list[pit.Floats]:
    """The U of each sequence in order, cut where one is not known: pairs keep their distance."""
    columns: dict[tuple[str, int], list[float]] = {}
    closed: set[tuple[str, int]] = set()
    for draw in draws:
        key = (draw.place.request_id, draw.place.sample_index)
        if draw.u is None:
            closed.add(key)
        elif key not in closed:
            columns.setdefault(key, []).append(draw.u)
    return [np.array(column) for column in columns.values()]


def _judge_pairs(pairs: Sequence[pit.Floats], alpha: float, what: str) -> Judgement:
    together = np.concatenate([np.empty((0, 2)), *pairs])
    process = uniform(pit.PAIR_BINS**2, subject="pairs")
    return _judged(process.add(pit.pair_counts(together), subject="pairs"), alpha, what)


def _judged(process: EProcess, alpha: float, what: str) -> Judgement:
    failure = None
    if process.rejects(alpha):
        failure = (
            f"{what}: e-value {math.exp(min(700.0, process.peak_log_e)):.3g} after "
            f"{process.num_draws} draws, {1 / alpha:.3g} is the limit"
        )
    return Judgement(process.num_draws, failure, alpha, process.peak_log_e)


def _worst(parts: Sequence[Judgement], alpha: float) -> Judgement:
    worst = max(parts, key=lambda part: (part.failure is not None, part.statistic))
    return worst._replace(alpha=alpha)
