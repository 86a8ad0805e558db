"""The sequential wrapper of Gandy and Scott: any p-value becomes a test that hardly ever errs.

A first, small sample passes at once when all is well; only a doubtful one pays for more draws.
With k stages, beta_1 = alpha / k and gamma = beta_1 ** (1 / k): at stage i a p-value of fresh draws
fails up to beta_i, passes above gamma, and otherwise goes on to beta_{i+1} = beta_i / gamma. Stage
i is reached with probability gamma ** (i - 1) at most, so each adds at most alpha / k to the false
alarms. beta_k = gamma: the last stage decides.

Source: Gandy and Scott, Unit testing for MCMC and other Monte Carlo methods, arXiv 2001.06465
(2020), algorithm 1. Theirs goes on up to beta_i + gamma; going on up to gamma alone keeps the bound
for conservative p-values, P(p <= x) <= x, as well.
"""

from collections.abc import Callable
from typing import NamedTuple


class SequentialResult(NamedTuple):
    """What a sequential test decided, and on what."""

    failed: bool
    num_draws: int
    p_values: tuple[float, ...]
    """Of the stages that were needed."""
    bounds: tuple[float, ...]
    """The p-value up to which each of them fails."""


def sequential_test(
    p_value: Callable[[int], float],
    *,
    alpha: float,
    num_draws: int,
    growth: int = 4,
    stages: int = 7,
) -> SequentialResult:
    """Tests the null hypothesis with a probability of at most `alpha` of rejecting it wrongly.

    `p_value(n)` makes n draws that were never used before and returns their p-value. The first
    stage makes `num_draws`, each later one `growth` times as many. Raises ValueError if alpha is
    outside (0, 1), or a count below 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} is outside (0, 1); 1e-5 is usual")
    for name, value in (("num_draws", num_draws), ("growth", growth), ("stages", stages)):
        if value < 1:
            raise ValueError(f"{name}={value} is below 1; give a positive number")
    bound = alpha / stages
    gamma = bound ** (1 / stages)
    draws, drawn = num_draws, 0
    p_values: list[float] = []
    bounds: list[float] = []
    for stage in range(stages):
        p_values.append(p_value(draws))
        bounds.append(bound)
        drawn += draws
        is_last = stage == stages - 1
        failed = p_values[-1] <= (gamma if is_last else bound)
        if failed or is_last or p_values[-1] > gamma:
            break
        bound /= gamma
        draws = growth * num_draws
    return SequentialResult(failed, drawn, tuple(p_values), tuple(bounds))
