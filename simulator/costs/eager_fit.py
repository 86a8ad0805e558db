"""Fits what the device takes for steps that no CUDA graph runs: mostly those that prefill.

A step that the device could do faster than the host launched it says nothing of the device, and
is left out. What products of few tokens take is known from the graphs, which run the same ones, and
so is what a program takes for each key that it goes through.
"""

import numpy as np

from pagetwin.simulator.costs.basis import TOKEN_KNOTS, Curve, knots_for, num_tokens, rise_columns
from pagetwin.simulator.costs.floors import USUAL_SHARE, Floors
from pagetwin.simulator.costs.solving import solve
from pagetwin.simulator.costs.step_costs import ContextCosts, EagerCosts, GraphCosts
from pagetwin.simulator.recordings.steps import Floats, StepTable

_BEYOND_LAUNCH = 1.2
"""How much longer than its own launch a step must be, to tell of the device."""
_EXTRAS = ("prefill_area", "num_prefill_sequences", "num_samples", "num_context_tokens")


def fit_eager(
    table: StepTable,
    device_seconds: Floats,
    floors: Floors,
    *,
    context: ContextCosts | None,
    graph: GraphCosts | None,
    launch_s: float,
) -> tuple[ContextCosts, EagerCosts]:
    """What such steps cost, at least one of them; `context` and `graph` are what graphs told.

    `launch_s`: what a launch usually takes, for steps whose own is not known.
    """
    launches = np.where(np.isfinite(table.launch_seconds), table.launch_seconds, launch_s)
    chosen = device_seconds > _BEYOND_LAUNCH * launches
    if not np.any(chosen):
        chosen[:] = True
    table, seconds = table.where(chosen), device_seconds[chosen]
    if context is not None:
        seconds = seconds - context.per_position_s * _mean_context(table)
    tokens, extras = num_tokens(table), np.stack([table.column(name) for name in _EXTRAS], axis=1)
    if context is not None:
        extras[:, 3] -= context.repeated_share * table.column("num_repeated_tokens")
    if graph is not None:
        sizes = np.array(graph.products.knots, float)
        tokens = np.concatenate([tokens, sizes])
        seconds = np.concatenate([seconds, graph.products.seconds])
        extras = np.vstack([extras, np.outer(sizes, [0.0, 0.0, 1.0, 0.0])])
    knots = knots_for(tokens, TOKEN_KNOTS)
    per_context_s = floors.per_context_s if context is None else context.per_token_s
    floor = np.array([0.0] * len(knots) + [floors.per_pair_s, 0.0, 0.0, per_context_s])
    widths = np.diff(np.array(knots, float), prepend=knots[0])
    usual = np.concatenate([widths * floors.per_token_s, floor[len(knots) :]]) / USUAL_SHARE
    found = solve(np.hstack([rise_columns(tokens, knots), extras]), seconds, floor, usual)
    pair, chunk, sample, token = found[len(knots) :].tolist()
    products = Curve(
        knots=knots,
        seconds=tuple(np.cumsum(found[: len(knots)]).tolist()),
        slope_after_s=floors.per_token_s,
    )
    costs = EagerCosts(
        products=products,
        per_pair_s=pair,
        per_chunk_s=chunk,
        per_sample_s=sample,
        per_context_s=token,
    )
    return context or ContextCosts(per_token_s=token), costs


def _mean_context(table: StepTable) -> Floats:
    """Tokens that a decoding sequence sees, on average."""
    count = np.maximum(table.column("num_decode_sequences"), 1)
    return table.column("num_context_tokens") / count
