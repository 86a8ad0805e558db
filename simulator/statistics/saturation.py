"""Whether a queue settles, or a backlog grows for as long as requests arrive.

Of one that grows no percentile means anything: each says how long was simulated.
"""

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Settling = Literal["settles", "grows", "unclear"]

NUM_WINDOWS = 10
WARM_UP = 0.2
"""Share of the arrivals' time in which a backlog may grow because everything began empty."""
SHARE = 0.02
"""Of the arrivals: slower growth is not told from a queue that settles slowly."""
CRITICAL = 1.86
"""Of Student's t with 8 degrees: the one-sided 5 % that a trend must pass."""


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """How the number of requests in the system went on while requests arrived."""

    settling: Settling
    growth: float
    """Share of the arriving requests that pile up, after the warm-up; the trend's slope over the
    rate of arrivals."""
    windows: tuple[float, ...]
    """Mean number in the system in each of ten spans of equal length, after the warm-up."""

    def __str__(self) -> str:
        if self.settling == "grows":
            return f"saturated: {self.growth:.0%} of what arrives piles up"
        return "settled" if self.settling == "settles" else "unclear whether the queue settles"


def backlog(arrivals_s: npt.ArrayLike, finishes_s: npt.ArrayLike) -> Backlog:
    """From arrival and finish of every request, in any order, NaN or inf where it never finished.

    The trend of the mean number in the system over ten windows after the warm-up is judged by
    least squares: it grows if the slope is significant and more than 2 % of the rate of arrivals.
    With fewer than 50 requests, or all arriving at once, nothing is clear.
    """
    arrivals = np.sort(np.asarray(arrivals_s, np.float64))
    finishes = np.asarray(finishes_s, np.float64)
    finishes = np.sort(np.where(np.isfinite(finishes), finishes, np.inf))
    count = len(arrivals)
    if count < 50 or arrivals[-1] <= arrivals[0]:
        return Backlog(settling="unclear", growth=0.0, windows=())
    length = arrivals[-1] - arrivals[0]
    edges = np.linspace(arrivals[0] + WARM_UP * length, arrivals[-1], NUM_WINDOWS + 1)
    areas = _time_in_system(arrivals, edges) - _time_in_system(finishes, edges)
    windows = np.diff(areas) / np.diff(edges)
    slope, t_value = _trend(windows, np.diff(edges)[0])
    growth = slope * length / count
    settling: Settling = "settles"
    if growth > SHARE:
        settling = "grows" if t_value > CRITICAL else "unclear"
    return Backlog(settling=settling, growth=float(growth), windows=tuple(windows.tolist()))


def _time_in_system(
    times: npt.NDArray[np.float64], until: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """For each of `until` the sum over all earlier times of how long ago they were."""
    finite = times[np.isfinite(times)]
    sums = np.concatenate(([0.0], np.cumsum(finite)))
    count = np.searchsorted(finite, until, side="right")
    return count * until - sums[count]


def _trend(windows: npt.NDArray[np.float64], width: float) -> tuple[float, float]:
    """Slope per second of the windows' means, and its t value."""
    at = (np.arange(len(windows)) - (len(windows) - 1) / 2) * width
    slope = float(at @ windows / (at @ at))
    residuals = windows - windows.mean() - slope * at
    error = np.sqrt(residuals @ residuals / (len(windows) - 2) / (at @ at))
    if error == 0:
        return slope, np.inf if slope > 0 else 0.0
    return slope, float(slope / error)
