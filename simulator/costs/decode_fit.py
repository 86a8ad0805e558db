"""Fits what decode steps of CUDA graphs cost: products by graph, and attention.

The products of a graph take what they take, whatever the sequences see: for given attention, each
graph's is the median of what is left. So only attention's three terms are searched for, those
with which least is left over in all, for each of the runs that a program may have.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]

from pagetwin.simulator.costs.basis import Curve
from pagetwin.simulator.costs.floors import USUAL_SHARE, Floors
from pagetwin.simulator.costs.step_costs import ContextCosts, GraphCosts
from pagetwin.simulator.recordings.steps import Floats, StepTable

_RUNS = (256, 512, 1024, 2048)
_USUAL_REPEATED_SHARE = 0.9
"""Keys and values from the device's cache cost about a tenth; for where nobody measured it."""
_MAX_ROWS = 4000
_TOLD_APART = 1e-4
"""Weight of the usual terms, for those that the steps cannot tell."""


def fit_graph(table: StepTable, floors: Floors) -> tuple[ContextCosts, GraphCosts]:
    """What decode steps of CUDA graphs cost, at least one of them."""
    rows = _Rows.of(table)
    best: tuple[float, Floats, int] | None = None
    usual = rows.usual(floors)
    for run in _RUNS:
        left, searched = _search(rows, run, usual, floors)
        if best is None or left < best[0] - 1e-9:
            best = left, searched, run
    assert best is not None
    per_token, per_position, share = _bounded(best[1], floors)
    terms = (per_token, per_position, share)
    sizes, seconds = rows.products(terms, best[2])
    context = ContextCosts(
        per_token_s=per_token, repeated_share=share, per_position_s=per_position, run=best[2]
    )
    products = Curve(knots=sizes, seconds=seconds, slope_after_s=floors.per_token_s)
    return context, GraphCosts(products=products)


def _search(rows: "_Rows", run: int, usual: Floats, floors: Floors) -> tuple[float, Floats]:
    """What is left over at the best, and the terms there."""

    def left_over(terms: Floats) -> float:
        away = float(np.abs(terms - usual).sum())
        return rows.left_over(_bounded(terms, floors), run) + _TOLD_APART * away

    terms = usual
    for _ in range(2):  # again from where it came to rest, which may be no minimum
        corners = np.vstack([terms, terms + 0.3 * np.eye(3)])
        found = minimize(
            left_over,
            terms,
            method="Nelder-Mead",
            options={"initial_simplex": corners, "maxfev": 150, "xatol": 1e-3, "fatol": 1e-7},
        )
        terms = found.x
    return float(found.fun), terms


Terms = tuple[float, float, float]
"""Seconds for each token seen and for each position of a run, and the share of the repeated."""


def _bounded(searched: Floats, floors: Floors) -> Terms:
    """Terms of what is searched, which may be any numbers."""
    per_token, per_position = np.exp(np.clip(searched[:2], -40, 0)).tolist()
    share = float(1 / (1 + np.exp(-np.clip(searched[2], -30, 30))))
    return max(per_token, floors.per_context_s), per_position, share


@dataclass(frozen=True)
class _Rows:
    """The steps, sorted by graph."""

    sizes: tuple[int, ...]
    starts: list[int]
    """Where the rows of each size begin, and the end."""
    seconds: Floats
    context: Floats
    repeated: Floats
    mean: Floats
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
            mean=context / count,
            weights=1 / np.sqrt(np.maximum(seconds, 1e-9)),
        )

    def usual(self, floors: Floors) -> Floats:
        """Where the search begins: as datasheets and experience have it."""
        per_token = floors.per_context_s / USUAL_SHARE or 1e-9
        share = np.log(_USUAL_REPEATED_SHARE / (1 - _USUAL_REPEATED_SHARE))
        return np.array([np.log(per_token), np.log(10 * per_token), share])

    def attention(self, terms: Terms, run: int) -> Floats:
        per_token, per_position, share = terms
        memory = per_token * (self.context - share * self.repeated)
        return np.maximum(memory, per_position * np.minimum(self.mean, run))

    def left_over(self, terms: Terms, run: int) -> float:
        """What the terms do not explain, as a share of all."""
        left = self.seconds - self.attention(terms, run)
        total = 0.0
        for start, end in zip(self.starts, self.starts[1:], strict=False):
            off = np.abs(left[start:end] - np.median(left[start:end]))
            total += float((off * self.weights[start:end]).sum())
        return total / float((self.seconds * self.weights).sum())

    def products(self, terms: Terms, run: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Sizes of graphs, and what is left for the products of each."""
        left = self.seconds - self.attention(terms, run)
        medians = [
            max(float(np.median(left[start:end])), 0.0)
            for start, end in zip(self.starts, self.starts[1:], strict=False)
        ]
        return self.sizes, tuple(medians)
