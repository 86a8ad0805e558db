"""Fits what the host does for a step: before the launch, in it, and after the end.

That is measured as such, but for the fetching of tokens, which stands in the time that the host
waits for the device. Some steps make it wait for nothing else.
"""

import numpy as np

from pagetwin.simulator.costs.basis import num_sequences
from pagetwin.simulator.costs.solving import solve
from pagetwin.simulator.costs.step_costs import HostCosts, HostLine
from pagetwin.simulator.recordings.steps import Floats, StepTable

_STALLED = 3
"""Times the median: longer launches stood still, for room in the device's queue or a compiler."""
_NO_WAIT = 1
"""Percentile of the waits: the shortest ones only fetched the tokens."""
_FETCHED = 64
"""To fetch tokens takes as if there were so many more."""
_MIN_STEPS = 4


def fetch_seconds(table: StepTable) -> float:
    """Seconds to fetch the token of one sequence, of steps of all kinds."""
    if len(table) == 0:
        return 0.0
    return float(np.percentile(table.wait_seconds / (num_sequences(table) + _FETCHED), _NO_WAIT))


def fit_host(table: StepTable, fetch_s: float, *, num_launches: int = 0) -> HostCosts:
    """What the host does for steps of one kind; nothing where too few tell.

    `num_launches`: into how many equally likely lengths launches are divided.
    """
    is_known = np.isfinite(table.before_seconds) & np.isfinite(table.launch_seconds)
    is_closed = np.isfinite(table.after_seconds)
    if is_known.sum() < _MIN_STEPS or is_closed.sum() < _MIN_STEPS:
        return HostCosts()
    known, closed = table.where(is_known), table.where(is_closed)
    after = closed.after_seconds + fetch_s * (num_sequences(closed) + _FETCHED)
    launch_s, launches_s = launches(known, num_launches)
    return HostCosts(
        before=_line(known, known.before_seconds),
        launch_s=launch_s,
        launches_s=launches_s,
        after=_line(closed, after),
    )


def launches(table: StepTable, count: int) -> tuple[float, tuple[float, ...]]:
    """How long launches are on average, and so many lengths that are equally likely; of steps that
    tell, at least one."""
    seconds = table.launch_seconds[np.isfinite(table.launch_seconds)]
    seconds = seconds[seconds <= _STALLED * np.median(seconds)]
    middles = (np.arange(count) + 0.5) / max(count, 1)
    # The mean, not the median: what a request sees is a sum of launches.
    return float(seconds.mean()), tuple(np.quantile(seconds, middles).tolist())


_LINE = (
    "num_decode_sequences",
    "num_prefill_sequences",
    "num_prefill_tokens",
    "num_prefix_tokens",
)
"""What the terms of a `HostLine` are for, in its order, after the constant."""


def _line(table: StepTable, seconds: Floats) -> HostLine:
    columns = np.stack([np.ones(len(table)), *map(table.column, _LINE)], axis=1)
    nothing = np.zeros(columns.shape[1])
    found = solve(columns, np.maximum(seconds, 0.0), nothing, nothing)
    return HostLine(**dict(zip(HostLine.__struct_fields__, found.tolist(), strict=True)))
