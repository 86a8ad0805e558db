"""Kernels' times as a table: against what the device reaches, and against FA3 where it ran."""

from collections.abc import Iterable

from pagetwin.conformance.bench.kernel_result import Ceilings, KernelReport, KernelRow
from pagetwin.reports.peers import AttentionPeer, Peers, measured_on
from pagetwin.reports.tables import Table, number


def kernel_table(report: KernelReport, peers: Iterable[Peers]) -> Table:
    """A row per kernel and shape; where a peer did the same work, how many times ours fits in."""
    peer = measured_on(report.device, peers)
    columns = ["kernel", "rows", "shape", "us", "GB/s", "of copy", "TFLOP/s", "of matmul"]
    columns += ["alone us", "FA3 alone", "FA3 / ours"] if peer else []
    rows = []
    for row in report.rows:
        cells = [row.kernel, str(row.rows), row.shape, *_speed(row, report.ceilings)]
        if peer:
            cells += _beside(row, peer.case(row.compared_with) if row.compared_with else None)
        rows.append(cells)
    return Table(columns, rows, num_left=3)


def best_ceilings(report: KernelReport, peers: Iterable[Peers]) -> Ceilings:
    """The higher of what the device and, when the peers ran, another of its kind have reached."""
    peer, now = measured_on(report.device, peers), report.ceilings
    then = peer.ceilings if peer else {}
    return Ceilings(
        copy_gb_per_s=max(now.copy_gb_per_s, then.get("copy_gb_per_s", 0.0)),
        matmul_tflops=max(now.matmul_tflops, then.get("matmul_bf16_tflops", 0.0)),
    )


def kernel_grid(report: KernelReport, peers: Iterable[Peers]) -> Table:
    """What is compared with no peer: microseconds by rows, and the share of the nearer ceiling."""
    ceilings = best_ceilings(report, peers)
    others = [row for row in report.rows if row.compared_with is None]
    columns = sorted({row.rows for row in others})
    kinds = dict.fromkeys((row.kernel, row.shape) for row in others)
    cells = {(row.kernel, row.shape, row.rows): _in_grid(row, ceilings) for row in others}
    rows = [[*kind, *(cells.get((*kind, count), "") for count in columns)] for kind in kinds]
    return Table(["kernel", "shape", *map(str, columns)], rows, num_left=2)


def attention_table(report: KernelReport, peers: Iterable[Peers]) -> Table:
    """The cases that peers are timed on, with the rate of the same device's peer beside ours."""
    peer = measured_on(report.device, peers)
    columns = ["case", "us", "alone us", "GB/s", "TFLOP/s"]
    columns += ["FA3 us", "FA3 GB/s", "FA3 TFLOP/s", "FA3 / ours"] if peer else []
    rows = []
    for row in report.rows:
        if row.compared_with is None or row.error:
            continue
        cells = [row.shape, number(row.us), number(row.alone_us)]
        cells += [number(row.gb_per_s), number(row.tflops)]
        if peer:
            case = peer.case(row.compared_with)
            fa3 = case.fa3 if case else None
            cells += [number(v) for v in (fa3.us, fa3.gb_per_s, fa3.tflops)] if fa3 else [""] * 3
            cells.append(_beside(row, case)[-1])
        rows.append(cells)
    return Table(columns, rows)


def ceilings_table(report: KernelReport, peers: Iterable[Peers]) -> Table:
    """What the device reaches on the plainest work, now and when the peers ran on its kind."""
    peer = measured_on(report.device, peers)
    columns = ["ceiling", "measured"] + (["when peers were measured"] if peer else [])
    then = peer.ceilings if peer else {}
    now = report.ceilings
    rows = [
        ["copy, GB/s", number(now.copy_gb_per_s, 4), number(then.get("copy_gb_per_s"), 4)],
        [
            "bfloat16 matmul, TFLOP/s",
            number(now.matmul_tflops),
            number(then.get("matmul_bf16_tflops")),
        ],
    ]
    return Table(columns, [row[: len(columns)] for row in rows])


def failures(report: KernelReport) -> list[str]:
    """A line for each kernel that did not run."""
    return [
        f"{row.kernel}, {row.rows} x {row.shape}: {row.error}" for row in report.rows if row.error
    ]


def ceilings_line(ceilings: Ceilings) -> str:
    return (
        f"copy {number(ceilings.copy_gb_per_s, 4)} GB/s, "
        f"bfloat16 matmul {number(ceilings.matmul_tflops)} TFLOP/s, measured in the same run"
    )


def _in_grid(row: KernelRow, ceilings: Ceilings) -> str:
    if row.error:
        return "failed"
    shares = row.gb_per_s / ceilings.copy_gb_per_s, row.tflops / ceilings.matmul_tflops
    return f"{number(row.us)} ({max(shares):.0%})"


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


def _beside(row: KernelRow, case: AttentionPeer | None) -> list[str]:
    fa3 = case.fa3 if case else None
    if fa3 is None or row.alone_us is None:
        return ["", "", ""]
    return [number(row.alone_us), number(fa3.us), f"{fa3.us / row.alone_us:.2f}"]
