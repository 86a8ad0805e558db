"""How many of many unlike events: sums of independent Bernoulli variables of known probabilities.

Single near ties are no evidence; too many of them are. The number of greedy tokens that rounding
flips is such a sum, with pi_t = Phi(-margin_t / (sqrt(2) sigma_t)) at position t, and so is the
number of draws that hit a token of known probability.

Source: Hong, On computing the distribution function for the Poisson binomial distribution (2013);
here by direct convolution, whose terms are all positive, so that small tails keep their digits.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr  # type: ignore[import-untyped]


def at_least(count: int, probabilities: ArrayLike) -> float:
    """P(number of events >= count); probabilities [events], each in [0, 1]."""
    return _tail(count, _checked(probabilities))


def at_most(count: int, probabilities: ArrayLike) -> float:
    """P(number of events <= count): as many others fail to happen."""
    p = _checked(probabilities)
    return _tail(len(p) - count, 1 - p)


def flip_probabilities(margins: ArrayLike, errors: ArrayLike | float) -> NDArray[np.float64]:
    """Probability that rounding turns each greedy choice.

    `margins` [positions] are gaps, in logits, between the likeliest two tokens; `errors` the
    standard deviation of one logit's error, one for all or [positions].
    """
    margins, errors = np.asarray(margins, np.float64), np.asarray(errors, np.float64)
    if (margins < 0).any() or (errors <= 0).any():
        raise ValueError("margins must be 0 or more and errors above 0")
    return np.asarray(ndtr(-margins / (np.sqrt(2) * errors)))


def _checked(probabilities: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 1 or (p < 0).any() or (p > 1).any():
        raise ValueError("probabilities must be a row of numbers in [0, 1]")
    return p


def _tail(count: int, p: NDArray[np.float64]) -> float:
    if count <= 0:
        return 1.0
    if count > len(p):
        return 0.0
    # Entry j: j events so far; the last entry keeps all that have reached `count`.
    mass = np.zeros(count + 1)
    mass[0] = 1.0
    for one in p[p > 0]:
        reached = mass[-1] + mass[-2] * one
        mass[1:-1] = mass[1:-1] * (1 - one) + mass[:-2] * one
        mass[0] *= 1 - one
        mass[-1] = reached
    return float(min(1.0, mass[-1]))
