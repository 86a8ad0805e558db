"""Fits the terms of `basis` to measured steps, none below the roofline, and tests by workload.

Non-negative least squares over what a term costs beyond its floor. Rows are weighed by the
inverse root of their time: with the plain weights a few long prefills would decide, with the
inverse of the time the sum would be off, and sums are what latencies are. Where the steps cannot
tell terms apart (prefills that are all full, say), what a device usually reaches of its roofline
decides: each such term is one more step, half as heavy as a measured one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.clock import to_seconds
from pagetwin.simulator.costs.basis import (
    GRAPH_KNOTS,
    TOKEN_KNOTS,
    Rise,
    eager_extras,
    graph_extras,
    is_graph,
    knots_for,
    num_tokens,
    rise_columns,
)
from pagetwin.simulator.costs.profile import (
    CalibratedCosts,
    EagerCosts,
    GraphCosts,
    HeldOut,
    StepCosts,
)
from pagetwin.simulator.costs.roofline import Roofline
from pagetwin.simulator.recordings.runs import Floats, StepTable

_MIN_STEPS = 16
_ROUNDS = 6
"""Of weighing anew; the weights are then still."""
_USUAL_SHARE = 0.6
"""What large products and long attention usually reach of a datasheet's peak."""
_USUAL_WEIGHT = 0.5


@dataclass(frozen=True)
class Floors:
    """Seconds that no coefficient may be under; zeros where there is no datasheet."""

    per_token_s: float = 0.0
    per_pair_s: float = 0.0
    per_context_s: float = 0.0

    @classmethod
    def of(cls, roofline: Roofline | None) -> "Floors":
        if roofline is None:
            return cls()
        return cls(
            per_token_s=2 * roofline.shape.token_parameters / roofline.gpu.flops(roofline.dtype),
            per_pair_s=to_seconds(roofline.pair_ticks),
            per_context_s=to_seconds(roofline.context_ticks),
        )


def fit(table: StepTable, floors: Floors) -> StepCosts:
    """The costs that explain the steps best.

    Raises ConfigError if there are too few steps to tell the terms apart.
    """
    graph, eager = _rows(table, is_graph(table)), _rows(table, ~is_graph(table))
    if len(table) < _MIN_STEPS:
        raise ConfigError(
            f"{len(table)} measured steps are too few to fit a cost model to; record "
            "whole workloads with 'pagetwin bench offline --record'"
        )
    return StepCosts(
        graph=_fit_graph(graph, floors) if len(graph) else None,
        eager=_fit_eager(eager, floors) if len(eager) else None,
    )


def cross_validate(
    tables: Mapping[str, StepTable],
    floors: Floors,
    *,
    leave_out: Sequence[str] = (),
    max_num_seqs: int,
) -> dict[str, HeldOut]:
    """For each workload: fit to the others, and how far its steps then are from the measured.

    Those to leave out are never fitted to.
    """
    results = {}
    for name, held_out in tables.items():
        others = [t for other, t in tables.items() if other != name and other not in leave_out]
        rest = StepTable.joined(others)
        if len(rest) < _MIN_STEPS:
            continue
        costs = CalibratedCosts(fit(rest, floors), max_num_seqs=max_num_seqs)
        results[name] = held_out_error(costs, held_out)
    return results


def held_out_error(costs: CalibratedCosts, table: StepTable) -> HeldOut:
    """How far predicted step times are from measured ones."""
    return error_of(predicted_seconds(costs, table), table.seconds)


def error_of(predicted: Floats, measured: Floats) -> HeldOut:
    return HeldOut(
        steps=len(measured),
        measured_s=float(measured.sum()),
        total_error=float(predicted.sum() / measured.sum() - 1),
        mean_absolute_error=float(np.abs(predicted - measured).sum() / measured.sum()),
    )


def predicted_seconds(costs: CalibratedCosts, table: StepTable) -> Floats:
    return np.array([to_seconds(costs.ticks(parts)) for parts in table.compositions()])


def _rows(table: StepTable, chosen: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> StepTable:
    return StepTable(**{name: getattr(table, name)[chosen] for name in StepTable.__struct_fields__})


def _fit_graph(table: StepTable, floors: Floors) -> GraphCosts:
    knots = knots_for(table.graph_sizes, GRAPH_KNOTS)
    columns = np.hstack([rise_columns(table.graph_sizes, knots), graph_extras(table)])
    floor = np.array([0.0] * len(knots) + [floors.per_context_s, 0.0])
    found = _solve(columns, table.seconds, floor, floor / _USUAL_SHARE)
    return GraphCosts(
        rise=_rise(knots, found, floors.per_token_s),
        per_context_s=found[len(knots)],
        per_mean_context_s=found[len(knots) + 1],
    )


def _fit_eager(table: StepTable, floors: Floors) -> EagerCosts:
    tokens = num_tokens(table)
    knots = knots_for(tokens, TOKEN_KNOTS)
    columns = np.hstack([rise_columns(tokens, knots), eager_extras(table)])
    extras = np.array([floors.per_pair_s, floors.per_context_s, 0.0, 0.0])
    widths = np.diff(np.array(knots, float), prepend=knots[0])
    floor = np.concatenate([np.zeros(len(knots)), extras])
    usual = np.concatenate([widths * floors.per_token_s, extras]) / _USUAL_SHARE
    found = _solve(columns, table.seconds, floor, usual)
    return EagerCosts(
        rise=_rise(knots, found, floors.per_token_s),
        per_pair_s=found[len(knots)],
        per_context_s=found[len(knots) + 1],
        per_chunk_s=found[len(knots) + 2],
        per_sample_s=found[len(knots) + 3],
        launch_s=float(table.launch_seconds.min()),
    )


def _rise(knots: tuple[int, ...], found: list[float], slope_s: float) -> Rise:
    seconds = tuple(np.cumsum(found[: len(knots)]).tolist())
    return Rise(knots=knots, seconds=seconds, slope_after_s=slope_s)


def _solve(columns: Floats, seconds: Floats, floor: Floats, usual: Floats) -> list[float]:
    """Coefficients, none below its floor; those that nothing determines are as usual."""
    # Columns of one size, so that the solver's tolerance means the same for each.
    sizes = np.maximum(np.abs(columns).max(axis=0), 1e-30)
    scaled = np.vstack([columns / sizes, np.diag((usual > 0).astype(float))])
    target = np.concatenate([seconds - columns @ floor, sizes * (usual - floor)])
    expected = np.concatenate([np.full(len(seconds), seconds.mean()), sizes * usual])
    shares = np.concatenate([np.ones(len(seconds)), np.full(len(usual), _USUAL_WEIGHT)])
    least = seconds.mean() * 1e-3
    found = floor
    for _ in range(_ROUNDS):
        # By the predicted time: a step that was short by chance must not count for more.
        weights = shares / np.sqrt(np.maximum(expected, least))
        beyond, _ = nnls(
            scaled * weights[:, None], target * weights, maxiter=100 * columns.shape[1]
        )
        found = floor + beyond / sizes
        expected[: len(seconds)] = columns @ found
    result: list[float] = found.tolist()
    return result


def measured_range(table: StepTable) -> dict[str, int]:
    """The largest step that was measured: beyond it, predictions are extrapolated."""
    return {
        "tokens": int(num_tokens(table).max()),
        "decode_sequences": int(table.column("num_decode_sequences").max()),
        "context_tokens": int(table.column("num_context_tokens").max()),
        "prefill_area": int(table.column("prefill_area").max()),
    }
