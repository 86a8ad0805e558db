"""Decides how the parts of a simulated cluster are put together, run and read off."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import simpy

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.trace import HeaderRecord, HistoryWriter
from pagetwin.simulator.clock import TICKS_PER_S, to_seconds
from pagetwin.simulator.cluster.autoscaler import Autoscaler
from pagetwin.simulator.cluster.description import Cluster, Policy, Pool
from pagetwin.simulator.cluster.disaggregation import CarriedPrompts, decode_pool
from pagetwin.simulator.cluster.faults import Faults
from pagetwin.simulator.cluster.gateway import Gateway
from pagetwin.simulator.cluster.node import Node
from pagetwin.simulator.cluster.timeline import Timeline
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.fast_forward.countable import can_count
from pagetwin.simulator.fast_forward.counted_process import CountedProcess
from pagetwin.simulator.fast_forward.process import FastForwardProcess
from pagetwin.simulator.process import ReplicaProcess
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.results.result import NodeResult, Result, request_columns
from pagetwin.simulator.timings import RequestTimings
from pagetwin.simulator.token_gaps import TokenGaps, merged
from pagetwin.simulator.token_source import ScriptedTokens
from pagetwin.simulator.workloads.workload import Stream


class ClusterRun:
    """One run, to be made and run once. See `simulate` for the arguments."""

    def __init__(
        self,
        cluster: Cluster,
        policy: Policy,
        cost_model: CostModel | None,
        stream: Stream,
        *,
        seed: int,
        fast_forward: bool,
        record: Path | None,
        skip_unfit: bool,
    ) -> None:
        policy.check_against(cluster)
        failures = cluster.failures
        # Then nobody acts on an end or a first token but who looks at the books, and is told first.
        self._may_report_late = not (
            stream.reacts
            or cluster.link is not None
            or policy.autoscaling is not None
            or failures.outages
            or failures.mtbf_s is not None
        )
        self._costs = {pool.name: _costs(pool, cost_model) for pool in cluster.pools}
        self._env = simpy.Environment()
        self._seed = seed
        self._fast_forward = fast_forward
        self._record = record
        self._files = ExitStack()
        self._gaps: list[TokenGaps] = []
        self._gateway = Gateway(
            self._env,
            cluster,
            policy,
            stream,
            seed=seed,
            cost_of=lambda node: self._costs[node.pool.name],
            skip_unfit=skip_unfit,
        )
        self._gateway.nodes = self._nodes(cluster, policy)
        self._faults = Faults(self._env, self._gateway, cluster.failures, seed=seed)
        if policy.autoscaling is not None:
            Autoscaler(self._env, self._gateway, policy.autoscaling)
        self._timeline = Timeline(self._env, self._gateway)

    def result(self) -> Result:
        """Runs to the end of the last request."""
        with self._files:
            self._env.run(until=self._gateway.over)
            for node in self._gateway.nodes:
                node.checked_load()
                node.close(self._gateway.now)
        conservation = self._gateway.journeys.conservation()
        if conservation.num_arrived == 0:
            raise ConfigError("the workload has no request; nothing arrived")
        ids, requests = request_columns(self._gateway.journeys.ended)
        labels = (getattr(costs, "label", "") for costs in self._costs.values())
        return Result(
            seed=self._seed,
            label="; ".join(dict.fromkeys(filter(None, labels))),
            request_ids=ids,
            requests=requests,
            reasons=self._gateway.journeys.ended.reasons,
            timeline=_timeline_columns(self._timeline),
            gap_counts=merged(self._gaps),
            nodes=tuple(NodeResult.of(node) for node in self._gateway.nodes),
            conservation=conservation,
            start_s=float(requests["arrival_s"][0]),
            end_s=to_seconds(self._gateway.now),
            num_failures=self._faults.num_failures,
            num_retries=self._gateway.num_retries,
        )

    def _nodes(self, cluster: Cluster, policy: Policy) -> tuple[Node, ...]:
        """Nodes in the order of their pools; those that are not needed at first are off."""
        nodes: list[Node] = []
        for pool in cluster.pools:
            used = decode_pool(pool) if pool.role == "decode" else pool
            scaling = policy.autoscaling
            num_first = pool.num_replicas
            if scaling is not None and scaling.pool == pool.name:
                num_first = scaling.min_replicas
            for place in range(pool.num_replicas):
                node = Node(len(nodes), used, self._replica)
                nodes.append(node)
                if place < num_first:
                    node.ready(0)
        return tuple(nodes)

    def _replica(self, node: Node) -> ReplicaProcess:
        pool, gateway = node.pool, self._gateway
        costs = self._costs[pool.name]
        costs = CarriedPrompts(costs) if pool.role == "decode" else costs
        tokens = ScriptedTokens(max_model_len=pool.scheduler.max_model_len)
        history = self._history(node)

        def on_finish(timings: RequestTimings) -> None:
            gateway.finished(node, timings)

        process: ReplicaProcess
        if self._fast_forward and history is None and can_count(pool.cache, pool.scheduler):
            process = CountedProcess(
                self._env,
                pool.cache,
                pool.scheduler,
                costs,
                tokens,
                on_first_token=gateway.first_token,
                on_finish=on_finish,
                may_report_late=self._may_report_late,
            )
        else:
            kind = FastForwardProcess if self._fast_forward else ReplicaProcess
            process = kind(
                self._env,
                Replica(pool.cache, pool.scheduler),
                costs,
                tokens,
                history,
                on_first_token=gateway.first_token,
                on_finish=on_finish,
            )
        process.times.gaps = TokenGaps()
        self._gaps.append(process.times.gaps)
        return process

    def _history(self, node: Node) -> HistoryWriter | None:
        if self._record is None:
            return None
        suffix = f".{node.generation}" if node.generation else ""
        path = self._record / f"replica-{node.number:02}{suffix}.jsonl"
        history = self._files.enter_context(HistoryWriter(path))
        pool = node.pool
        header = HeaderRecord(
            cache=pool.cache, scheduler=pool.scheduler, engine="pagetwin.simulator"
        )
        history.write(header)
        return history


def _costs(pool: Pool, cost_model: CostModel | None) -> CostModel:
    costs = pool.cost_model or cost_model
    if costs is None:
        raise ConfigError(
            f"pool {pool.name!r} has no cost model; give it one, or one to simulate() for all"
        )
    return costs


def _timeline_columns(timeline: Timeline) -> dict[str, np.ndarray]:
    columns = {
        name: np.frombuffer(column, dtype=np.int64) for name, column in timeline.columns.items()
    }
    return {"time_s": columns.pop("time") / TICKS_PER_S, **columns}
