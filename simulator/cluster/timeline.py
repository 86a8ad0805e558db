"""Decides when the cluster is looked at, so that queues and pools can be drawn over time.

A run of unknown length gets at most `MAX_SAMPLES` looks: when there are more, every other one is
dropped, and the pauses double. A look changes nothing.
"""

from array import array

import simpy

from pagetwin.simulator.cluster.gateway import Gateway, schedule

MAX_SAMPLES = 1024
FIRST_PAUSE = 10**11
"""Ticks between the first looks: a tenth of a second."""


class Timeline:
    """Columns of what was seen, the first look at tick 0."""

    COLUMNS = (
        "time",
        "num_outstanding",
        "num_waiting",
        "num_running",
        "num_serving",
        "num_held_blocks",
        "num_blocks",
    )

    def __init__(self, env: simpy.Environment, gateway: Gateway) -> None:
        self.columns = {name: array("q") for name in self.COLUMNS}
        self._env = env
        self._gateway = gateway
        self._pause = FIRST_PAUSE
        self._look()

    def _look(self) -> None:
        gateway = self._gateway
        gateway.catch_up()
        seen = [node.checked_load() for node in gateway.nodes]
        loads = [load for load in seen if load is not None]
        at_gateway = sum(gateway.num_waiting(role) for role in ("serve", "prefill", "decode"))
        usable = sum(load.num_usable_blocks for load in loads)
        values = (
            gateway.now,
            gateway.journeys.num_outstanding,
            at_gateway + sum(load.num_waiting for load in loads),
            sum(load.num_running for load in loads),
            len(loads),
            usable - sum(load.num_free_blocks for load in loads),
            usable,
        )
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        if len(self.columns["time"]) > MAX_SAMPLES:
            self.columns = {name: column[::2] for name, column in self.columns.items()}
            self._pause *= 2
        schedule(self._env, self.columns["time"][-1] + self._pause, self._look)
