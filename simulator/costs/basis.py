"""Decides the shapes that measured times are given: curves by size, and what a fit is made of."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np

from pagetwin.simulator.recordings.steps import Flags, Floats, StepTable

TOKEN_KNOTS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Curve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds by size as they were measured, straight between, flat to the left.

    To the right it goes on as steep as it was on the whole, or as its last part, or as
    `slope_after_s`, whichever is steepest. Nothing says that it rises: a product with weights is
    another kernel at another size.
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
    """[len(values), len(knots)]: 1, then how far each value is on its way through each part.

    With coefficients that are not negative, a curve that never falls.
    """
    columns = [np.ones(len(values))]
    for low, high in pairwise(knots):
        columns.append(np.clip((values - low) / (high - low), 0, None if high == knots[-1] else 1))
    return np.stack(columns, axis=1)


def is_graph(table: StepTable) -> Flags:
    """Which steps a CUDA graph ran."""
    return table.graph_size > 0


def follows_alike(table: StepTable) -> Flags:
    """Which steps come after two of the same kind: the device had no time to wait for the host."""
    kind = is_graph(table)
    alike = np.zeros(len(table), np.bool_)
    alike[2:] = (kind[2:] == kind[1:-1]) & (kind[1:-1] == kind[:-2])
    starts = np.flatnonzero(table.is_first)
    for after in (0, 1):
        alike[np.minimum(starts + after, len(table) - 1)] = False
    return alike


def num_tokens(table: StepTable) -> Floats:
    """All tokens that a step computes."""
    return table.column("num_prefill_tokens") + table.column("num_decode_sequences")


def num_sequences(table: StepTable) -> Floats:
    return table.column("num_prefill_sequences") + table.column("num_decode_sequences")
