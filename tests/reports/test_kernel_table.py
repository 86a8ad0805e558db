"""Kernels' times beside the device's ceilings, and beside a peer's."""

import msgspec
import pytest

from pagetwin.conformance.bench.kernel_result import Ceilings, KernelReport, KernelRow
from pagetwin.reports.kernel_table import (
    attention_table,
    best_ceilings,
    ceilings_line,
    ceilings_table,
    failures,
    kernel_grid,
    kernel_table,
)
from pagetwin.reports.peers import AttentionPeer, Peers, Speed

SPEED = Speed(us=20.0, gb_per_s=50.0, tflops=1.0)
PEERS = Peers(
    device="a GPU",
    date="2026-11-22",
    versions={},
    origin="made up",
    ceilings={"copy_gb_per_s": 1234.5, "matmul_bf16_tflops": 99.0},
    attention=(AttentionPeer("decode", SPEED, SPEED),),
    engine="other 1.0",
    startup_s={},
    rows=(),
)


def row(kernel: str, rows: int, shape: str, compared_with: str | None = None) -> KernelRow:
    return KernelRow.of(
        [9e-6, 10e-6, 14e-6],
        10**6,
        10**9,
        device="a GPU",
        kernel=kernel,
        rows=rows,
        shape=shape,
        compared_with=compared_with,
        alone_s=[16e-6] if compared_with else None,
    )


@pytest.fixture
def report() -> KernelReport:
    broken = KernelRow.failed(
        ValueError("too wide\nby far"), device="a GPU", kernel="odd", rows=7, shape="9"
    )
    return KernelReport(
        version="0.1.0",
        commit=None,
        sources_sha256="",
        machine={},
        versions={},
        device="a GPU",
        seed=0,
        config={},
        ceilings=Ceilings(copy_gb_per_s=200.0, matmul_tflops=400.0),
        rows=(row("attention", 2, "decode", "decode"), row("rms_norm", 1, "64"), broken),
    )


def test_a_row_is_the_median_of_its_samples() -> None:
    made = row("rms_norm", 1, "64")
    assert made.us == pytest.approx(10)
    assert made.gb_per_s == pytest.approx(100)
    assert made.tflops == pytest.approx(100)
    assert made.samples_us == (9.0, 10.0, 14.0)
    assert made.key == "a GPU/rms_norm/1/64"


def test_times_stand_beside_the_ceilings(report: KernelReport) -> None:
    table = kernel_table(report, [])
    assert table.rows[1] == ["rms_norm", "1", "64", "10.0", "100", "50%", "100", "25%"]
    assert table.rows[2][:4] == ["odd", "7", "9", "failed"]


def test_a_peer_is_compared_with_the_launch_alone(report: KernelReport) -> None:
    table = kernel_table(report, [PEERS])
    assert table.rows[0][-3:] == ["16.0", "20.0", "1.25"]
    assert table.rows[1][-3:] == ["", "", ""]
    [shown] = attention_table(report, [PEERS]).rows
    assert shown == ["decode", "10.0", "16.0", "100", "100", "20.0", "50.0", "1.00", "1.25"]


def test_a_peer_of_another_device_is_not_shown_at_all(report: KernelReport) -> None:
    elsewhere = msgspec.structs.replace(PEERS, device="a GPU of another kind")
    for table in (kernel_table, attention_table, ceilings_table):
        assert table(report, [elsewhere]) == table(report, [])
        assert table(report, [elsewhere, PEERS]) == table(report, [PEERS])
        assert table(report, [PEERS]) != table(report, [])


def test_a_peer_that_did_not_run_leaves_its_cells_empty(report: KernelReport) -> None:
    broken = msgspec.structs.replace(PEERS, attention=(AttentionPeer("decode", None, SPEED),))
    [shown] = attention_table(report, [broken]).rows
    assert shown[-4:] == ["", "", "", ""]


def test_a_grid_has_a_column_for_each_number_of_rows(report: KernelReport) -> None:
    table = kernel_grid(report, [])
    assert table.columns == ["kernel", "shape", "1", "7"]
    assert table.rows == [["rms_norm", "64", "10.0 (50%)", ""], ["odd", "9", "", "failed"]]


def test_shares_are_of_the_higher_ceiling_of_the_same_device(report: KernelReport) -> None:
    """The peers' copy was faster, their product slower."""
    assert best_ceilings(report, [PEERS]) == Ceilings(copy_gb_per_s=1234.5, matmul_tflops=400.0)
    assert kernel_grid(report, [PEERS]).rows[0][2] == "10.0 (25%)"
    elsewhere = msgspec.structs.replace(PEERS, device="a GPU of another kind")
    assert best_ceilings(report, [elsewhere]) == report.ceilings


def test_ceilings_stand_beside_those_of_the_peers_day(report: KernelReport) -> None:
    assert ceilings_table(report, [PEERS]).rows[0] == ["copy, GB/s", "200.0", "1,234"]
    assert ceilings_table(report, []).columns == ["ceiling", "measured"]
    assert "200.0 GB/s" in ceilings_line(report.ceilings)


def test_what_failed_is_a_line(report: KernelReport) -> None:
    assert failures(report) == ["odd, 7 x 9: ValueError: too wide"]


def test_a_report_survives_its_file(report: KernelReport) -> None:
    assert msgspec.json.decode(msgspec.json.encode(report), type=KernelReport) == report
