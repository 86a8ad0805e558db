"""Decides how the simulator's speed is shown, beside that of others at the same job."""

from collections.abc import Sequence

import msgspec

from pagetwin.conformance.bench.simulation import SimulatorReport
from pagetwin.reports.peers import BASELINES
from pagetwin.reports.tables import Table, number


class SimulatorPeer(msgspec.Struct, frozen=True, kw_only=True):
    """What another simulator needs for the job, where it was run for this project."""

    name: str
    requests_per_cpu_s: float
    startup_s: str
    peak_rss_mb: float | None
    note: str


class SimulatorPeers(msgspec.Struct, frozen=True, kw_only=True):
    """Others at 512 prompt and 128 output tokens, Poisson 8/s, 20,000 requests, one core."""

    date: str
    origin: str
    rows: Sequence[SimulatorPeer]


def load_simulator_peers() -> SimulatorPeers:
    return msgspec.json.decode((BASELINES / "simulators.json").read_bytes(), type=SimulatorPeers)


def simulator_table(report: SimulatorReport, peers: SimulatorPeers) -> Table:
    """Ours in both modes, then the others."""
    long = report.num_requests_long
    peak = f"{number(report.peak_rss_long_mb)} MB at {long:,} requests" if long else ""
    startup, mb = number(report.startup_s), number(report.peak_rss_mb)
    stepping_mb = max(run.peak_rss_mb for run in report.runs if run.mode == "stepping")
    jumping = number(report.fast_forward_requests_per_cpu_s)
    stepping = number(report.stepping_requests_per_cpu_s)
    remark = "every iteration planned and closed"
    rows = [
        ["pagetwin, fast forward", jumping, startup, mb, peak],
        ["pagetwin, stepping", stepping, startup, number(stepping_mb), remark],
    ]
    for peer in peers.rows:
        rate = number(peer.requests_per_cpu_s)
        rows.append([peer.name, rate, peer.startup_s, number(peer.peak_rss_mb), peer.note])
    columns = ["simulator", "requests per CPU-s", "start-up s", "peak MB", "remark"]
    return Table(columns, rows)
