"""What commands that simulate share: from options to a cluster and a workload, and to files."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pagetwin.commands import knobs
from pagetwin.commands.progress import terminal_progress
from pagetwin.commands.writing import as_json_document
from pagetwin.conformance.environment import versions
from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.cluster.deployment import Deployment, deployment_of
from pagetwin.simulator.cluster.description import (
    Admission,
    Autoscaling,
    Cluster,
    Failures,
    Link,
    Policy,
)
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.costs.known_models import config_named
from pagetwin.simulator.costs.profile import read_profile
from pagetwin.simulator.local_processes import LocalProcesses
from pagetwin.simulator.results.files import write_perfetto, write_requests, write_timeline
from pagetwin.simulator.results.report import SimulationReport, load_point, report_of
from pagetwin.simulator.results.result import Result
from pagetwin.simulator.results.slo import Slo
from pagetwin.simulator.simulate import simulate
from pagetwin.simulator.workloads.faster import Faster
from pagetwin.simulator.workloads.spec import parse_workload
from pagetwin.simulator.workloads.traces import Trace
from pagetwin.simulator.workloads.trimmed import Trimmed
from pagetwin.simulator.workloads.workload import Workload


def deployment_named(**options: Any) -> Deployment:
    """From options, those left away being None."""
    return Deployment(**knobs.given(**options))


def cluster_of(
    model: str,
    deployment: Deployment,
    pools: Sequence[str],
    *,
    mtbf: float | None,
    repair: float,
    link_gbps: float,
    profile: Path | None,
) -> Cluster:
    """The deployment as one pool, or with its knobs changed as each of `pools` says."""
    config = config_named(model)
    deployments = [deployment_of(text, deployment) for text in pools] or [deployment]
    names = (
        ["replicas"]
        if len(deployments) == 1
        else [f"{one.role}-{place}" for place, one in enumerate(deployments)]
    )
    link = None
    if any(one.role == "prefill" for one in deployments):
        num_bytes = deployment.kv_bytes_per_token(config)
        link = Link(bytes_per_s=link_gbps * 1e9 / 8, bytes_per_token=num_bytes)
    costs: list[CostModel | None] = [None] * len(deployments)
    if profile is None:
        costs = [one.measured(config) for one in deployments]
    elif profile != knobs.UNCALIBRATED:
        measured, engine = read_profile(profile), versions()["pagetwin"]
        costs = [one.calibrated(measured, config, engine) for one in deployments]
    return Cluster(
        pools=tuple(
            one.pool(name, config, cost)
            for name, one, cost in zip(names, deployments, costs, strict=True)
        ),
        failures=Failures(mtbf_s=mtbf, repair_s=repair),
        link=link,
    )


def policy_of(
    cluster: Cluster,
    *,
    router: str,
    max_outstanding: int | None,
    max_ttft: float | None,
    autoscale: float | None,
    cold_start: float,
) -> Policy:
    """Of the gateway. Autoscaling is of the first pool."""
    scaling = None
    if autoscale is not None:
        scaling = Autoscaling(pool=cluster.pools[0].name, target=autoscale, cold_start_s=cold_start)
    return Policy(
        router=router,  # type: ignore[arg-type]
        admission=Admission(max_outstanding=max_outstanding, max_ttft_s=max_ttft),
        autoscaling=scaling,
    )


def parse_loads(text: str | None) -> tuple[float, ...]:
    """`0.5,1,1.5`, sorted. Raises ConfigError."""
    factors = set()
    for part in (text or "").split(",") if text else ():
        try:
            factor = float(part)
        except ValueError:
            factor = -1.0
        if not 0 < factor < float("inf"):
            raise ConfigError(f"--loads {text!r}: {part!r} is no number above 0; write 0.5,1,1.5")
        factors.add(factor)
    return tuple(sorted(factors))


def workload_of(spec: str | None, trace: Path | None, cluster: Cluster, *, trim: bool) -> Workload:
    """The one that is given; with `trim`, cut to what every pool can take."""
    if (spec is None) == (trace is None):
        raise ConfigError("give either --workload SPEC or --trace FILE")
    workload: Workload
    workload = parse_workload(spec) if spec is not None else Trace(path=trace or Path())
    if not trim:
        return workload
    limits = [
        min(
            pool.scheduler.max_model_len,
            (pool.cache.num_blocks - 1) * pool.cache.block_size,
        )
        for pool in cluster.pools
    ]
    return Trimmed(workload, min(limits))


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Runs that differ by their seed, and what becomes of them."""

    workload: Workload
    workload_name: str
    cluster: Cluster
    policy: Policy
    settings: dict[str, Any]
    slo: Slo | None
    seed: int
    num_seeds: int
    fast_forward: bool
    skip_unfit: bool
    loads: tuple[float, ...] = ()
    """Multiples of the load that are run, too."""
    num_processes: int | None = None
    """Runs at once; None: one a processor."""

    def run(self, out: Path | None, *, record: bool) -> SimulationReport:
        """Simulates, and writes the files if a folder is named: all of them, or none."""
        from pagetwin.reports.simulation_page import render_simulation_page
        from pagetwin.reports.staging import staged

        if self.num_seeds < 1:
            raise ConfigError(f"--seeds {self.num_seeds} is below 1; nothing would run")
        with ExitStack() as stack:
            folder = None if out is None else stack.enter_context(staged(out))
            progress = stack.enter_context(terminal_progress())
            progress.begin("simulate", self.num_seeds + len(self.loads))
            runs: list[tuple[int, float, Path | None]]
            runs = [
                (self.seed + place, 1.0, folder if record else None)
                for place in range(self.num_seeds)
            ]
            runs += [(self.seed, factor, None) for factor in self.loads]
            processes = stack.enter_context(LocalProcesses(self._num_processes(len(runs))))
            ended: list[Result] = []
            for result in processes.starmap(self.simulate, runs):
                ended.append(result)
                progress.advance_to(len(ended))
            results, faster = ended[: self.num_seeds], ended[self.num_seeds :]
            curve = [
                load_point(factor, result, self.slo)
                for factor, result in zip(self.loads, faster, strict=True)
            ]
            report = report_of(
                results,
                workload=self.workload_name,
                settings=self.settings | {"policy": self.policy},
                slo=self.slo,
            )
            report = msgspec.structs.replace(report, curve=tuple(curve))
            if folder is not None:
                (folder / "summary.json").write_bytes(as_json_document(report))
                page = render_simulation_page(report, results[0], self.slo)
                (folder / "simulation.html").write_text(page, "utf-8")
                for result in results:
                    self._write(result, folder)
        return report

    def simulate(self, seed: int, factor: float, record: Path | None) -> Result:
        """One run, at that multiple of the load."""
        return simulate(
            self.workload if factor == 1.0 else Faster(self.workload, factor),
            self.cluster,
            self.policy,
            seed=seed,
            fast_forward=self.fast_forward,
            record=record,
            skip_unfit=self.skip_unfit,
        )

    def _num_processes(self, num_runs: int) -> int:
        wanted = self.num_processes
        return min((os.cpu_count() or 1) if wanted is None else wanted, num_runs)

    def _write(self, result: Result, folder: Path) -> None:
        suffix = f"-seed{result.seed}" if self.num_seeds > 1 else ""
        write_requests(result, folder / f"requests{suffix}.csv")
        write_timeline(result, folder / f"timeline{suffix}.csv")
        write_perfetto(result, folder / f"trace{suffix}.json")
