"""Decides how many replicas of a pool run."""

import math

import simpy

from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.cluster.description import Autoscaling
from pagetwin.simulator.cluster.gateway import Gateway, schedule
from pagetwin.simulator.cluster.node import Node, State

RUNNING = (State.STARTING, State.SERVING)


class Autoscaler:
    """Looks every `interval_s`; starts replicas at once, lets go of one after each `cooldown_s`."""

    def __init__(self, env: simpy.Environment, gateway: Gateway, scaling: Autoscaling) -> None:
        self._env = env
        self._gateway = gateway
        self._scaling = scaling
        self._pool = [node for node in gateway.nodes if node.pool.name == scaling.pool]
        self._too_many_since: int | None = None
        self._plan_look()

    def wanted(self) -> int:
        """Replicas for the requests that are there now."""
        num_requests = sum(node.num_outstanding for node in self._pool)
        num_requests += self._gateway.num_waiting(self._pool[0].pool.role)
        count = math.ceil(num_requests / self._scaling.target)
        return min(max(count, self._scaling.min_replicas), len(self._pool))

    def _plan_look(self) -> None:
        ticks = max(1, to_ticks(self._scaling.interval_s))
        schedule(self._env, self._gateway.now + ticks, self._look)

    def _look(self) -> None:
        running = [node for node in self._pool if node.state in RUNNING]
        missing = self.wanted() - len(running)
        if missing >= 0:
            self._too_many_since = None
        if missing > 0:
            self._add(missing)
        elif missing < 0:
            self._let_go(running)
        self._plan_look()

    def _add(self, missing: int) -> None:
        draining = [node for node in self._pool if node.state is State.DRAINING]
        for node in draining[:missing]:
            node.undrain(self._gateway.now)
            self._gateway.flush(node.pool.role)
        off = [node for node in self._pool if node.state is State.OFF]
        for node in off[: missing - len(draining[:missing])]:
            self._start(node)

    def _start(self, node: Node) -> None:
        node.start(self._gateway.now)

        def ready() -> None:
            node.ready(self._gateway.now)
            self._gateway.flush(node.pool.role)

        schedule(self._env, self._gateway.now + to_ticks(self._scaling.cold_start_s), ready)

    def _let_go(self, running: list[Node]) -> None:
        now = self._gateway.now
        if self._too_many_since is None:
            self._too_many_since = now
        serving = [node for node in running if node.state is State.SERVING]
        is_time = now - self._too_many_since >= to_ticks(self._scaling.cooldown_s)
        if is_time and len(serving) > 1:
            self._too_many_since = now
            # The last one, so that the first ones keep their caches.
            serving[-1].drain(now)
