"""Least squares that a few outliers do not move: no coefficient below its floor."""

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]

from pagetwin.simulator.recordings.steps import Floats

_ROUNDS = 12
"""Of weighing anew; the weights are then still."""
_LIKELY = 0.03
"""How far off a step is by chance, as a share; what is off by more counts for less."""
_USUAL_WEIGHT = 0.5
"""Of what a coefficient usually is, against one measured step."""


def solve(columns: Floats, seconds: Floats, floor: Floats, usual: Floats) -> Floats:
    """Coefficients, none below its floor; those that nothing determines are as usual (0: free).

    Rows are weighed by the inverse root of their time: with plain weights a few long steps would
    decide, with the inverse of the time the sum would be off, and sums are what latencies are.
    """
    # Columns of one size, so that the solver's tolerance means the same for each.
    sizes = np.maximum(np.abs(columns).max(axis=0), 1e-30)
    scaled = np.vstack([columns / sizes, np.diag((usual > 0).astype(float))])
    target = np.concatenate([seconds - columns @ floor, sizes * (usual - floor)])
    shares = np.concatenate([np.ones(len(seconds)), np.full(len(usual), _USUAL_WEIGHT)])
    expected = np.concatenate([np.full(len(seconds), seconds.mean()), sizes * usual])
    least = seconds.mean() * 1e-3
    found = floor
    for _ in range(_ROUNDS):
        # By the predicted time: a step that was short by chance must not count for more.
        scale = np.maximum(expected, least)
        weights = shares / np.sqrt(scale)
        beyond, _ = nnls(
            scaled * weights[:, None], target * weights, maxiter=100 * columns.shape[1]
        )
        found = floor + beyond / sizes
        predicted = columns @ found
        expected[: len(seconds)] = predicted
        off = np.abs(predicted - seconds) / np.maximum(predicted, least)
        shares[: len(seconds)] = np.sqrt(np.minimum(1.0, _LIKELY / np.maximum(off, 1e-9)))
    return found
