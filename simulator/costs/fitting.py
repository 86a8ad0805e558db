"""Fits a device's and a host's terms to measured steps, and tests by workload.

Each part is fitted to its own measurement: the device's time of a step, the host's before the
launch, in it, and after the end. Where a history has no time of a device (a CPU, a simulation) all
time counts as the device's.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.clock import to_seconds
from pagetwin.simulator.costs.basis import follows_alike, is_graph, num_tokens
from pagetwin.simulator.costs.decode_fit import fit_graph
from pagetwin.simulator.costs.eager_fit import fit_eager
from pagetwin.simulator.costs.floors import Floors
from pagetwin.simulator.costs.host_fit import fetch_seconds, fit_host, launches
from pagetwin.simulator.costs.profile import HeldOut
from pagetwin.simulator.costs.step_costs import CalibratedCosts, ContextCosts, HostCosts, StepCosts
from pagetwin.simulator.recordings.steps import Floats, StepTable
from pagetwin.simulator.step_clock import StepClock

MIN_STEPS = 16
_NUM_LAUNCHES = 32
"""Lengths that a launch may have."""


def fit(table: StepTable, floors: Floors) -> StepCosts:
    """The costs that explain the steps best.

    Raises ConfigError if there are too few steps to tell the terms apart.
    """
    if len(table) < MIN_STEPS:
        raise ConfigError(
            f"{len(table)} measured steps are too few to fit a cost model to; record "
            "whole workloads with 'pagetwin bench offline --record'"
        )
    graph, eager = table.where(is_graph(table)), table.where(~is_graph(table))
    has_device = bool(np.any(table.device_seconds > 0))
    graph_host = eager_host = HostCosts()
    if has_device:
        fetch_s = fetch_seconds(table)
        graph_host = fit_host(graph, fetch_s)
        eager_host = fit_host(eager, fetch_s, num_launches=_NUM_LAUNCHES)
    context: ContextCosts | None = None
    graph_costs = eager_costs = None
    if len(graph):
        steady = table.where(is_graph(table) & follows_alike(table))
        context, graph_costs = fit_graph(steady if len(steady) else graph, floors)
    if len(eager):
        device = eager.device_seconds if has_device else eager.seconds
        context, eager_costs = fit_eager(
            eager, device, floors, context=context, graph=graph_costs, launch_s=eager_host.launch_s
        )
    assert context is not None, "every step is of one kind or the other"
    return StepCosts(
        context=context,
        graph=graph_costs,
        eager=eager_costs,
        graph_host=graph_host,
        eager_host=eager_host,
    )


def with_launches_of(costs: StepCosts, table: StepTable) -> StepCosts:
    """The costs, but launches as long as they were in these steps, if some of them tell."""
    telling = table.where(~is_graph(table) & np.isfinite(table.launch_seconds))
    if len(telling) == 0:
        return costs
    launch_s, launches_s = launches(telling, _NUM_LAUNCHES)
    host = msgspec.structs.replace(costs.eager_host, launch_s=launch_s, launches_s=launches_s)
    return msgspec.structs.replace(costs, eager_host=host)


def cross_validate(
    tables: Mapping[str, StepTable], floors: Floors, *, always: Sequence[str], max_num_seqs: int
) -> dict[str, HeldOut]:
    """For each workload: fit to the others, and how far its steps then are from the measured.

    Those that are `always` fitted to are never left out.
    """
    results = {}
    for name, held_out in tables.items():
        if name in always:
            continue
        rest = StepTable.joined(table for other, table in tables.items() if other != name)
        if len(rest) >= MIN_STEPS:
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
    """What each step takes after the one before, planned ahead where the recorded one was."""
    clock, now, ticks = StepClock(costs), 0, []
    compositions = list(table.compositions())
    ahead = [*table.is_ahead.tolist(), False]
    is_launched = False
    for number, parts in enumerate(compositions):
        if not is_launched:
            clock.launch(parts, now)
        is_launched = ahead[number + 1]
        if is_launched:
            clock.launch(compositions[number + 1], now)
        end = clock.next_end(now)
        clock.close()
        ticks.append(end - now)
        now = end
    return np.array([to_seconds(each) for each in ticks])


def measured_range(table: StepTable) -> dict[str, int]:
    """The largest step that was measured: beyond it, predictions are extrapolated."""
    return {
        "tokens": int(num_tokens(table).max()),
        "decode_sequences": int(table.column("num_decode_sequences").max()),
        "context_tokens": int(table.column("num_context_tokens").max()),
        "prefill_area": int(table.column("prefill_area").max()),
    }
