"""Kernels' times as a table: against what the device reaches, and against FA3 where it ran."""

from pagetwin.conformance.bench.kernel_result import Ceilings, KernelReport, KernelRow
from pagetwin.reports.peers import AttentionPeer, Peers
from pagetwin.reports.tables import Table, number


def kernel_table(report: KernelReport, peers: Peers | None) -> Table:
    """A row per kernel and shape; where a peer did the same work, how many times ours fits in."""
    columns = ["kernel", "shape", "us", "GB/s", "of copy", "TFLOP/s", "of matmul"]
    columns += ["alone us", "FA3 alone", "FA3 / ours"] if peers else []
    rows = []
    for row in report.rows:
        cells = [row.kernel, row.shape, *_speed(row, report.ceilings)]
        if peers:
            peer = peers.case(row.compared_with) if row.compared_with else None
            cells += _beside(row, peer)
        rows.append(cells)
    return Table(columns, rows, num_left=2)


def failures(report: KernelReport) -> list[str]:
    """A line for each kernel that did not run."""
    return [f"{row.kernel}, {row.shape}: {row.error}" for row in report.rows if row.error]


def ceilings_line(ceilings: Ceilings) -> str:
    return (
        f"copy {number(ceilings.copy_gb_per_s, 4)} GB/s, "
        f"bfloat16 matmul {number(ceilings.matmul_tflops)} TFLOP/s, measured in the same run"
    )


def _speed(row: KernelRow, ceilings: Ceilings) -> list[str]:
    if row.error:
        return ["failed", "", "", "", ""]
    return [
        number(row.us),
        number(row.gb_per_s),
        f"{row.gb_per_s / ceilings.copy_gb_per_s:.0%}",
        number(row.tflops),
        f"{row.tflops / ceilings.matmul_tflops:.0%}",
    ]


def _beside(row: KernelRow, peer: AttentionPeer | None) -> list[str]:
    if peer is None or row.alone_us is None:
        return ["", "", ""]
    return [number(row.alone_us), number(peer.fa3.us), f"{peer.fa3.us / row.alone_us:.2f}"]
