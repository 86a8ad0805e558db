"""Fits what decode steps of CUDA graphs cost: products by graph, and attention.

The products of a graph take what they take, whatever the sequences see: for given attention, each
graph's is the median of what is left. So only attention's terms are searched for, those with which
least is left over in all, for each of the runs that a program may have.
"""

from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]

from pagetwin.simulator.costs.basis import Curve
from pagetwin.simulator.costs.floors import USUAL_SHARE, Floors
from pagetwin.simulator.costs.step_costs import ContextCosts, GraphCosts
from pagetwin.simulator.recordings.steps import Floats, StepTable

_RUNS = (1024, 2048)
_IDLE = (8, 32)
_TILES = (0, 64, 128)
_USUAL_REPEATED_SHARE = 0.9
"""Keys and values from the device's cache cost about a tenth; for where nobody measured it."""
_MAX_ROWS = 4000
_TOLD_APART = 1e-4
"""Weight of the usual terms, for those that the steps cannot tell."""


def fit_graph(table: StepTable, floors: Floors) -> tuple[ContextCosts, GraphCosts]:
    """What decode steps of CUDA graphs cost, at least one of them."""
    rows = _Rows.of(table)
    usual = rows.usual(floors)
    found = [
        _search(rows, _Shape(*shape), usual, floors) for shape in product(_RUNS, _IDLE, _TILES)
    ]
    _, shape, terms = min(found, key=lambda one: one[0])
    sizes, seconds = rows.products(terms, shape)
    context = ContextCosts(
        per_token_s=terms.per_token,
        repeated_share=terms.share,
        per_position_s=terms.per_position,
        run=shape.run,
        num_idle=shape.num_idle,
        tile=shape.tile,
    )
    products = Curve(knots=sizes, seconds=seconds, slope_after_s=floors.per_token_s)
    return context, GraphCosts(products=products)


class _Shape(NamedTuple):
    """What is tried out rather than searched for; see `ContextCosts`."""

    run: int
    num_idle: int
    tile: int


class _Terms(NamedTuple):
    """Of attention, in seconds; see `ContextCosts`."""

    per_token: float
    per_position: float
    share: float

    @classmethod
    def of(cls, searched: Floats, floors: Floors) -> "_Terms":
        """Of what is searched, which may be any numbers."""
        token, position = np.exp(np.clip(searched[:2], -40, 0)).tolist()
        share = float(1 / (1 + np.exp(-np.clip(searched[2], -30, 30))))
        return cls(max(token, floors.per_context_s), position, share)


def _search(
    rows: "_Rows", shape: _Shape, usual: Floats, floors: Floors
) -> tuple[float, _Shape, _Terms]:
    """What is left over at the best, and the terms there."""

    def left_over(searched: Floats) -> float:
        away = float(np.abs(searched - usual).sum())
        return rows.left_over(_Terms.of(searched, floors), shape) + _TOLD_APART * away

    at = usual
    for _ in range(2):  # again from where it came to rest, which may be no minimum
        corners = np.vstack([at, at + 0.3 * np.eye(len(at))])
        found = minimize(
            left_over,
            at,
            method="Nelder-Mead",
            options={"initial_simplex": corners, "maxfev": 90, "xatol": 1e-3, "fatol": 1e-7},
        )
        at = found.x
    return float(found.fun), shape, _Terms.of(at, floors)


@dataclass(frozen=True)
class _Rows:
    """The steps, sorted by graph."""

    sizes: tuple[int, ...]
    starts: list[int]
    """Where the rows of each size begin, and the end."""
    seconds: Floats
    context: Floats
    repeated: Floats
    count: Floats
    weights: Floats

    @classmethod
    def of(cls, table: StepTable) -> "_Rows":
        order = np.argsort(table.graph_size, kind="stable")
        every = -(-len(order) // _MAX_ROWS)
        sizes = table.graph_size[order]
        # Thinned out within each size, so that none is lost.
        place = np.arange(len(sizes)) - np.searchsorted(sizes, sizes)
        order = order[place % every == 0]
        table = table.where(np.isin(np.arange(len(table)), order)) if every > 1 else table
        order = np.argsort(table.graph_size, kind="stable")
        sizes = table.graph_size[order]
        distinct, starts = np.unique(sizes, return_index=True)
        seconds = table.device_seconds[order]
        context = table.column("num_context_tokens")[order]
        count = np.maximum(table.column("num_decode_sequences")[order], 1)
        return cls(
            sizes=tuple(int(size) for size in distinct),
            starts=[*starts.tolist(), len(sizes)],
            seconds=seconds,
            context=context,
            repeated=table.column("num_repeated_tokens")[order],
            count=count,
            weights=1 / np.sqrt(np.maximum(seconds, 1e-9)),
        )

    def usual(self, floors: Floors) -> Floats:
        """Where the search begins: as datasheets and experience have it."""
        per_token = floors.per_context_s / USUAL_SHARE or 1e-9
        share = np.log(_USUAL_REPEATED_SHARE / (1 - _USUAL_REPEATED_SHARE))
        return np.array([np.log(per_token), np.log(10 * per_token), share])

    def attention(self, terms: _Terms, shape: _Shape) -> Floats:
        least = self.count * shape.tile
        keys = np.maximum(self.context + least / 2, least)
        memory = terms.per_token * (keys - terms.share * self.repeated)
        hidden = np.minimum(1.0, shape.num_idle / self.count)
        return memory + terms.per_position * np.minimum(keys / self.count, shape.run) * hidden

    def left_over(self, terms: _Terms, shape: _Shape) -> float:
        """What the terms do not explain, as a share of all."""
        left = self.seconds - self.attention(terms, shape)
        total = 0.0
        for start, end in pairwise(self.starts):
            off = np.abs(left[start:end] - self._products(left, start, end))
            total += float((off * self.weights[start:end]).sum())
        return total / float((self.seconds * self.weights).sum())

    def products(self, terms: _Terms, shape: _Shape) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Sizes of graphs, and what is left for the products of each."""
        left = self.seconds - self.attention(terms, shape)
        medians = [self._products(left, start, end) for start, end in pairwise(self.starts)]
        return self.sizes, tuple(max(median, 0.0) for median in medians)

    def _products(self, left: Floats, start: int, end: int) -> float:
        """The median of what is left, of steps that repeat nothing if there are some: what is
        saved by repeating is the least certain term."""
        plain = left[start:end][self.repeated[start:end] == 0]
        return float(np.median(plain if len(plain) else left[start:end]))
