"""Where the results of a device come from: card, versions, commit."""

from collections.abc import Iterable

from pagetwin.conformance.bench.kernel_result import KernelReport
from pagetwin.conformance.bench.offline_result import OfflineReport
from pagetwin.conformance.environment import Measured
from pagetwin.reports.peers import Peers, measured_on
from pagetwin.reports.tables import Table

_SHOWN = ("driver", "torch", "triton")


def setup_table(offline: OfflineReport, kernels: KernelReport, peers: Iterable[Peers]) -> Table:
    """A row for each of ours, and one for the peers of the engine's device, if there are any."""
    rows = [
        _ours(
            "engine, history recorded" if offline.recorded else "engine", offline.device, offline
        ),
        _ours("kernels", kernels.device, kernels),
    ]
    peer = measured_on(offline.device, peers)
    if peer is not None:
        versions = [peer.versions.get(key, "") for key in _SHOWN]
        rows.append([f"{peer.engine} and flash-attn 3", peer.device, *versions, peer.date])
    return Table(["measured", "device", *_SHOWN, "commit or date"], rows, num_left=6)


def _ours(name: str, device: str, report: Measured) -> list[str]:
    found = report.versions | report.machine
    return [name, device, *(found.get(key, "") for key in _SHOWN), _commit(report)]


def _commit(report: Measured) -> str:
    if report.commit is None:
        return "not stamped"
    return report.commit.id[:10] + (" and changes" if report.commit.dirty else "")
