"""Whether a queue settles, or a backlog grows for as long as requests arrive.

Of one that grows no percentile means anything: each says how long was simulated.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from pagetwin.simulator.statistics.intervals import replication_interval

Settling = Literal["settles", "grows", "unclear"]

MIN_RUNS = 3
NUM_WINDOWS = 10
WARM_UP = 0.2
"""Share of the arrivals' time in which a backlog may grow because everything began empty; or twice
as long as the first requests were in the system, if that is longer."""
MOST_WARM_UP = 0.6
"""Where the warm-up would be longer, the run is too short to tell."""
SHARE = 0.02
"""Of the arrivals: slower growth is not told from a queue that settles slowly."""
CRITICAL = 3.36
"""Of Student's t with 8 degrees: the one-sided 0.5 % that a trend must pass."""
WANDERING = 2.58
"""Of the standard deviations of a queue's trend just at capacity: the same 0.5 %. There the number
in the system is a random walk, which goes up or down for as long as a short run lasts."""
FLOOD = 0.25
"""Growth that needs no second run to be believed."""
LATE = 0.5
"""Of the arrivals' time: where the last to arrive wait longer than that to be begun with, the queue
grew, however short the run is beside its requests."""


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


def saturates(runs: Sequence[Backlog], confidence: float) -> bool:
    """Whether the queue grows in runs that differ by their seed: so much in one that nothing else
    can be, or on the average of three and more."""
    if any(run.settling == "grows" and run.growth > FLOOD for run in runs):
        return True
    if len(runs) < MIN_RUNS:
        return False
    growth = replication_interval([run.growth for run in runs], confidence)
    return growth.is_below(SHARE) is False


def backlog(
    arrivals_s: npt.ArrayLike, finishes_s: npt.ArrayLike, starts_s: npt.ArrayLike | None = None
) -> Backlog:
    """From arrival and finish of every request, in any order, NaN or inf where it never finished;
    and, if known, from when it was first begun with.

    The trend of the mean number in the system over ten windows after the warm-up is judged by
    least squares: it grows if the slope is significant, and more than 2 % of the rate of arrivals
    above what the chance of so few arrivals may do. With fewer than 50 requests, or all arriving at
    once, or in a run hardly longer than its requests, nothing is clear; nor is growth over windows
    that are shorter than the first requests stay, for they all see the same requests.
    """
    unclear = Backlog(settling="unclear", growth=0.0, windows=())
    arrivals, finishes = np.asarray(arrivals_s, np.float64), np.asarray(finishes_s, np.float64)
    finishes = np.where(np.isfinite(finishes), finishes, np.inf)
    count = len(arrivals)
    if count < 50 or arrivals.max() <= arrivals.min():
        return unclear
    order = np.argsort(arrivals, kind="stable")
    stays, arrivals = (finishes - arrivals)[order], arrivals[order]
    length = arrivals[-1] - arrivals[0]
    if starts_s is not None:
        starts = np.asarray(starts_s, np.float64)
        # One that was turned away never began, and did not wait either.
        starts = np.where(np.isfinite(starts), starts, finishes)[order]
        if np.median((starts - arrivals)[-count // 5 :]) > LATE * length:
            left = float((starts > arrivals[-1]).mean())
            return Backlog(settling="grows", growth=left, windows=())
    stay = float(np.median(stays[: max(10, count // 10)]))
    warm_up = max(WARM_UP * length, 2 * stay if stay < np.inf else 0.0)
    if warm_up > MOST_WARM_UP * length:
        return unclear
    finishes = np.sort(finishes)
    edges = np.linspace(arrivals[0] + warm_up, arrivals[-1], NUM_WINDOWS + 1)
    areas = _time_in_system(arrivals, edges) - _time_in_system(finishes, edges)
    windows = np.diff(areas) / np.diff(edges)
    slope, t_value = _trend(windows, np.diff(edges)[0])
    growth = slope * length / count
    settling: Settling = "settles"
    if growth > SHARE:
        # The very first hardly queue, even where the queue grows fast.
        stay = np.quantile(stays[:10], 0.25)
        is_told = t_value > CRITICAL and (length - warm_up) / NUM_WINDOWS >= stay
        is_told &= growth > SHARE + WANDERING * _wandering(arrivals)
        settling = "grows" if is_told else "unclear"
    return Backlog(settling=settling, growth=float(growth), windows=tuple(windows.tolist()))


def _wandering(arrivals: npt.NDArray[np.float64]) -> float:
    """Standard deviation of the growth at capacity, as a share of the arrivals.

    That of a least squares slope over a random walk, 1.2 times its variance; a step's is of the
    gaps between arrivals, and of the service, which is taken for no more regular than Poisson's.
    """
    gaps = np.diff(arrivals)
    variation = float(gaps.var() / gaps.mean() ** 2) + 1.0
    return math.sqrt(1.2 * variation / len(arrivals))


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
