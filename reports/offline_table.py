"""Offline results as tables: ours, beside another engine where it ran on the same device."""

from collections.abc import Iterable

from pagetwin.conformance.bench.offline_result import OfflineReport, OfflineRow, OnlineRow
from pagetwin.conformance.bench.work import Work
from pagetwin.reports.peers import Peers, measured_on
from pagetwin.reports.tables import Table, number


def offline_table(report: OfflineReport, peers: Iterable[Peers]) -> Table:
    """A row per model and workload, beside the engine that ran the same on the same device."""
    peer = measured_on(report.device, peers)
    columns = ["model", "workload", "seconds", "output tok/s", "total tok/s"]
    columns += [peer.engine, "ratio"] if peer else []
    columns += ["steps", "preempted", "hits"]
    rows = []
    for row in report.rows:
        cells = [row.model, shown_workload(row), number(min(row.seconds))]
        cells += [number(row.output_tokens_per_s, 4), number(row.total_tokens_per_s, 4)]
        if peer:
            cells += _beside(row, peer)
        best = row.best
        hits = best.prefix_hit_tokens / best.prefix_queries if best.prefix_queries else 0.0
        cells += [str(best.steps), str(best.preemptions), f"{hits:.0%}"]
        rows.append(cells)
    return Table(columns, rows, num_left=2)


def online_table(report: OfflineReport) -> Table:
    """A row per model, workload and way of arriving: what the requests of its first pass saw."""
    measures = list(dict.fromkeys(name for row in report.online for name in _latencies(row)))
    columns = ["model", "workload", "arrivals", "offered/s", "served/s"]
    rows = []
    for row in report.online:
        first = row.passes[0]
        cells = [row.model, shown_workload(row), row.arrivals, number(row.offered_per_s)]
        cells += [number(first.requests_per_s)]
        rows.append([*cells, *(number(first.latency_ms.get(name)) for name in measures)])
    return Table([*columns, *measures], rows, num_left=3)


def _latencies(row: OnlineRow) -> dict[str, float]:
    return row.passes[0].latency_ms


def shown_workload(row: OfflineRow | OnlineRow) -> str:
    return row.workload if row.shrunk_by == 1 else f"{row.workload} / {row.shrunk_by}"


def _beside(row: OfflineRow, peer: Peers) -> list[str]:
    """The peer's seconds, and how many times ours fit into them."""
    theirs = peer.row(row.model, row.workload)
    if theirs is None or row.shrunk_by != 1:
        return ["", ""]
    return [f"{number(min(theirs.seconds))} s", f"{min(theirs.seconds) / min(row.seconds):.2f}"]


def startup_table(report: OfflineReport, peers: Iterable[Peers]) -> Table:
    """Seconds from an interpreter that has imported nothing to an engine that is ready."""
    peer = measured_on(report.device, peers)
    phases = list(dict.fromkeys(name for run in report.models.values() for name in run.startup_s))
    columns = ["model", *phases, "total"] + ([peer.engine] if peer else [])
    rows = []
    for model, run in report.models.items():
        cells = [model, *(number(run.startup_s.get(phase)) for phase in phases)]
        cells.append(number(sum(run.startup_s.values())))
        if peer:
            cells.append(number(peer.startup_s.get(model)))
        rows.append(cells)
    return Table(columns, rows)


def step_table(report: OfflineReport) -> Table:
    """The mean step of each row's fastest pass: the host's phases, and the device's time."""
    phases = ["wall", "device", "prepare", "execute", "sample"]
    columns = ["model", "workload", "steps", "by graph", *(f"{phase} ms" for phase in phases)]
    rows = []
    for row in report.rows:
        best = row.best
        cells = [row.model, shown_workload(row), str(best.steps), str(best.graph_steps)]
        rows.append([*cells, *(number(best.step_ms.get(phase)) for phase in phases)])
    return Table(columns, rows, num_left=2)


def floor_table(report: OfflineReport, *, gb_per_s: float, tflops: float) -> Table:
    """The two floors in seconds, by what they are made of, and the run's time beside them."""
    columns = ["model", "workload", "weights", "KV", "matmuls", "attention"]
    columns += ["floor", "measured", "x floor"]
    rows = []
    for row in report.rows:
        work, measured = row.work, min(row.seconds)
        floor = floor_s(work, gb_per_s=gb_per_s, tflops=tflops)
        parts = [work.weight_bytes / gb_per_s / 1e9, work.kv_bytes / gb_per_s / 1e9]
        parts += [work.matmul_flops / tflops / 1e12, work.attention_flops / tflops / 1e12]
        numbers = [*map(number, parts), number(floor), number(measured), f"{measured / floor:.2f}"]
        rows.append([row.model, shown_workload(row), *numbers])
    return Table(columns, rows, num_left=2)


def floor_s(work: Work, *, gb_per_s: float, tflops: float) -> float:
    """Seconds below which kernels that run one after the other cannot come.

    Matrix products read the weights while they multiply, attention reads keys and values while it
    does: of each pair the longer one counts.
    """
    bandwidth, rate = gb_per_s * 1e9, tflops * 1e12
    matmuls = max(work.weight_bytes / bandwidth, work.matmul_flops / rate)
    return matmuls + max(work.kv_bytes / bandwidth, work.attention_flops / rate)
