"""Decides the shape of a step's time: which terms there are, and that none can be negative.

A decode step that a CUDA graph runs costs

    rise(padded sequences) + per_context * C + per_mean_context * C / n

where C are the tokens that its n sequences see: the weights and launches, the keys and values
read, and the wait for the last of them where few sequences leave the device idle. Any other step
costs

    rise(tokens) + per_pair * area + per_context * C + per_chunk * prefills + per_sample * samples

`rise` is a line through knots that never falls: products with weights are flat while they read
and straight while they multiply, with steps between that no formula has.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np

from pagetwin.simulator.recordings.runs import Floats, StepTable

GRAPH_KNOTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
TOKEN_KNOTS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Rise(msgspec.Struct, frozen=True, kw_only=True):
    """A line through (knot, seconds), flat to the left.

    To the right it goes on as steep as its last part, as it was on the whole, or as
    `slope_after_s`, whichever is steepest.
    """

    knots: tuple[int, ...]
    seconds: tuple[float, ...]
    slope_after_s: float = 0.0

    def at(self, value: float) -> float:
        """Seconds at a value of any size."""
        knots, seconds = self.knots, self.seconds
        if value <= knots[-1]:
            return float(np.interp(value, knots, seconds))
        slope = self.slope_after_s
        if len(knots) > 1:
            slope = max(
                slope,
                (seconds[-1] - seconds[-2]) / (knots[-1] - knots[-2]),
                (seconds[-1] - seconds[0]) / (knots[-1] - knots[0]),
            )
        return seconds[-1] + slope * (value - knots[-1])


def knots_for(values: Floats, knots: Sequence[int]) -> tuple[int, ...]:
    """Those of the knots that the values span, with samples beside each."""
    if len(values) == 0:
        return (knots[0],)
    inside = [knot for knot in knots if values.min() < knot < values.max()]
    chosen = [int(values.min())]
    for knot in [*inside, int(values.max())]:
        # A part without samples would be told apart from its neighbour by nothing.
        if knot > chosen[-1] and np.any((values > chosen[-1]) & (values <= knot)):
            chosen.append(knot)
    return tuple(chosen)


def rise_columns(values: Floats, knots: Sequence[int]) -> Floats:
    """[len(values), len(knots)]: 1, then how far each value is on its way through each part."""
    columns = [np.ones(len(values))]
    for low, high in pairwise(knots):
        columns.append(np.clip((values - low) / (high - low), 0, None if high == knots[-1] else 1))
    return np.stack(columns, axis=1)


def is_graph(table: StepTable) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return table.graph_sizes > 0


def graph_extras(table: StepTable) -> Floats:
    """[num_steps, 2]: context, and context of the mean sequence."""
    context, count = table.column("num_context_tokens"), table.column("num_decode_sequences")
    return np.stack([context, context / np.maximum(count, 1)], axis=1)


def eager_extras(table: StepTable) -> Floats:
    """[num_steps, 4]: query-key pairs, context, prefilling sequences, samples."""
    names = ("prefill_area", "num_context_tokens", "num_prefill_sequences", "num_samples")
    return np.stack([table.column(name) for name in names], axis=1)


def num_tokens(table: StepTable) -> Floats:
    """All tokens that a step computes."""
    return table.column("num_prefill_tokens") + table.column("num_decode_sequences")
