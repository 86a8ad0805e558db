"""A test that may be looked at after every draw, stopped, resumed, and carried from night to night.

The counts of a multinomial with known probabilities p are judged by the Bayes factor of a
Dirichlet(kappa p) alternative against p. Under the null this is a martingale of mean 1, so by
Ville's inequality it ever reaches 1 / alpha with a probability of at most alpha, however often one
looks:

    ln E_n = ln G(kappa) - ln G(kappa + n)
             + sum over cells of [ln G(kappa p_i + c_i) - ln G(kappa p_i) - c_i ln p_i]

with G the gamma function, c_i the counts and n their sum.

Source: Lindon and Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022 (arXiv
2011.03567).
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln  # type: ignore[import-untyped]

CONCENTRATION_PER_CELL = 50.0
"""Prior draws a cell. Larger looks for smaller deviations and sees large ones later."""
_TOLERANCE = 1e-9


class EProcess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts so far, and the largest value that their e-process has had; plain data to store."""

    subject: str
    """What is tested, by name and version (a digest of the sampler's code, say). Counts of another
    subject are never added."""
    probabilities: tuple[float, ...]
    concentration: float
    counts: tuple[int, ...]
    peak_log_e: float = 0.0
    """Largest ln E of all the moments at which counts were added."""

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.probabilities) or len(self.counts) < 2:
            raise ValueError(
                f"{len(self.counts)} counts for {len(self.probabilities)} probabilities; give one "
                "each, for two cells at least"
            )
        if min(self.probabilities) <= 0 or abs(math.fsum(self.probabilities) - 1) > _TOLERANCE:
            raise ValueError(
                f"probabilities={self.probabilities} are not positive with sum 1; pool the empty "
                "cells, or judge them by their support"
            )
        if min(self.counts) < 0 or not self.concentration > 0:
            raise ValueError("counts must be 0 or more and the concentration positive")

    @property
    def num_draws(self) -> int:
        return sum(self.counts)

    @property
    def log_e(self) -> float:
        """ln E after all the draws."""
        p, c = np.array(self.probabilities), np.array(self.counts)
        prior = self.concentration * p
        total = self.concentration
        cells = gammaln(prior + c) - gammaln(prior) - c * np.log(p)
        return float(gammaln(total) - gammaln(total + c.sum()) + cells.sum())

    def rejects(self, alpha: float) -> bool:
        """Whether the null has been rejected, now or earlier."""
        return self.peak_log_e >= -math.log(alpha)

    def add(self, counts: ArrayLike, *, subject: str) -> "EProcess":
        """The process after more draws. Raises ValueError if they are of another subject."""
        if subject != self.subject:
            raise ValueError(
                f"the stored process tests {self.subject!r}, not {subject!r}; start a new one"
            )
        more: NDArray[np.int64] = np.asarray(counts, np.int64)
        if more.shape != (len(self.counts),):
            raise ValueError(f"counts of shape {more.shape} for {len(self.counts)} cells")
        added = tuple(int(n) for n in np.array(self.counts) + more)
        after = msgspec.structs.replace(self, counts=added)
        return msgspec.structs.replace(after, peak_log_e=max(self.peak_log_e, after.log_e))


def start(
    probabilities: Sequence[float] | NDArray[Any],
    *,
    subject: str,
    concentration: float | None = None,
) -> EProcess:
    """An e-process without draws; by default of CONCENTRATION_PER_CELL for each cell."""
    cells = tuple(float(p) for p in probabilities)
    return EProcess(
        subject=subject,
        probabilities=cells,
        concentration=concentration or CONCENTRATION_PER_CELL * len(cells),
        counts=(0,) * len(cells),
    )


def uniform(num_cells: int, *, subject: str) -> EProcess:
    """An e-process for equally likely cells."""
    return start([1 / num_cells] * num_cells, subject=subject)
