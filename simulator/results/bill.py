"""Decides what a run costs in money and energy; both are estimates from datasheets and prices."""

import msgspec

from pagetwin.simulator.results.result import Result

IDLE_SHARE = 0.15
"""Of the power under load that a GPU draws while no step runs; an assumption."""


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    gpu_hours: float
    """Of replicas that are not switched off, start-up and repair included."""
    cost: float
    """In the currency of the prices."""
    energy_kwh: float
    """GPUs at their datasheet's power in steps, at `IDLE_SHARE` of it between them."""
    cost_per_million_output_tokens: float | None
    """None without output."""


def bill(result: Result) -> Bill:
    hours = cost = energy = 0.0
    for node in result.nodes:
        gpu_hours = node.paid_s / 3600 * node.num_gpus
        hours += gpu_hours
        cost += gpu_hours * node.price_per_gpu_h
        loaded_s = node.busy_s + IDLE_SHARE * (node.paid_s - node.busy_s)
        energy += loaded_s / 3600 * node.num_gpus * node.power_per_gpu_w / 1000
    tokens = int(result.requests["num_output_tokens"].sum())
    return Bill(
        gpu_hours=hours,
        cost=cost,
        energy_kwh=energy,
        cost_per_million_output_tokens=cost / tokens * 1e6 if tokens else None,
    )
