"""Decides when replicas fail, and when they are back."""

from functools import partial

import numpy as np
import simpy

from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.cluster.description import Failures
from pagetwin.simulator.cluster.gateway import Gateway, schedule
from pagetwin.simulator.cluster.node import Node, State
from pagetwin.simulator.workloads.draws import Purpose, generator


class Faults:
    """Fails the nodes of a gateway as `Failures` says.

    Each node has streams of its own for its times to failure and to repair. A failure that finds
    the node not serving does nothing; the next one is drawn from then on.
    """

    def __init__(
        self, env: simpy.Environment, gateway: Gateway, failures: Failures, *, seed: int
    ) -> None:
        self.num_failures = 0
        self._env = env
        self._gateway = gateway
        self._failures = failures
        for outage in failures.outages:
            node, duration = gateway.nodes[outage.node], outage.duration_s
            ticks = None if duration is None else to_ticks(duration)
            schedule(env, to_ticks(outage.at_s), partial(self._fail, node, ticks))
        if failures.mtbf_s is not None:
            for node in gateway.nodes:
                lives = generator(seed, Purpose.FAILURES, node.number)
                repairs = generator(seed, Purpose.REPAIRS, node.number)
                self._plan_failure(node, failures.mtbf_s, lives, repairs)

    def _plan_failure(
        self, node: Node, mtbf_s: float, lives: np.random.Generator, repairs: np.random.Generator
    ) -> None:
        def fail() -> None:
            repair_s = self._failures.repair_s * repairs.standard_exponential()
            self._fail(node, to_ticks(repair_s))
            self._plan_failure(node, mtbf_s, lives, repairs)

        life_s = mtbf_s * lives.standard_exponential()
        schedule(self._env, self._gateway.now + to_ticks(life_s), fail)

    def _fail(self, node: Node, repair_ticks: int | None) -> None:
        if node.state not in (State.SERVING, State.DRAINING):
            return
        self.num_failures += 1
        was_wanted = node.state is State.SERVING
        node.will_return = repair_ticks is not None and was_wanted
        self._gateway.lose(node)
        if repair_ticks is not None:
            ticks = self._gateway.now + repair_ticks
            schedule(self._env, ticks, lambda: self._repair(node, was_wanted))

    def _repair(self, node: Node, is_wanted: bool) -> None:
        if node.state is not State.DOWN:
            return
        if is_wanted:
            node.ready(self._gateway.now)
            self._gateway.flush(node.pool.role)
        else:
            node.off(self._gateway.now)
