"""Offline results beside a peer's, and beside their floors."""

import msgspec
import pytest

from pagetwin.conformance.bench.offline_result import ModelRun, OfflineReport, OfflineRow, Pass
from pagetwin.conformance.bench.work import ModelSizes, Work
from pagetwin.conformance.bench.workloads import BenchRequest
from pagetwin.reports.offline_table import floor_s, floor_table, offline_table, startup_table
from pagetwin.reports.peers import EnginePeer, Peers, load_peers, measured_on

WORK = Work(
    min_steps=2,
    weight_bytes=4 * 10**9,
    kv_bytes=10**9,
    matmul_flops=10**12,
    attention_flops=3 * 10**12,
)
PEERS = Peers(
    device="a GPU",
    date="2026-11-22",
    versions={},
    origin="made up",
    ceilings={},
    attention=(),
    engine="other 1.0",
    startup_s={"tiny": 60.0},
    rows=(
        EnginePeer(
            model="tiny",
            workload="chat",
            num_requests=1,
            prompt_tokens=3,
            output_tokens=4,
            seconds=(3.0, 2.0),
        ),
    ),
)


def made_up_report(shrunk_by: int = 1) -> OfflineReport:
    passes = [
        Pass(seconds=2.0, steps=10, graph_steps=8, prefix_queries=40, prefix_hit_tokens=10),
        Pass(seconds=1.0, steps=10, graph_steps=8, prefix_queries=40, prefix_hit_tokens=20),
    ]
    row = OfflineRow.of(
        passes,
        [BenchRequest([1, 2, 3], 4)],
        WORK,
        device="a GPU",
        model="tiny",
        name="chat",
        shrunk_by=shrunk_by,
    )
    sizes = ModelSizes(
        num_layers=1,
        layer_matrix_parameters=1,
        last_layer_parameters=1,
        head_parameters=1,
        weight_bytes=1,
        kv_bytes_per_token=1,
        attention_flops_per_key=1,
    )
    run = ModelRun(config={}, startup_s={"import": 1.5, "load": 0.5}, sizes=sizes)
    return OfflineReport(
        version="0.1.0",
        commit=None,
        sources_sha256="",
        device="a GPU",
        machine={},
        versions={},
        seed=0,
        models={"tiny": run},
        rows=(row,),
    )


def cells(text: str) -> list[str]:
    return text.splitlines()[1].split()


def test_a_row_shows_its_fastest_pass() -> None:
    shown = cells(offline_table(made_up_report(), ()).text())
    assert shown == ["tiny", "chat", "1.00", "4.000", "7.000", "10", "0", "50%"]


def test_a_peer_that_ran_the_same_stands_beside_it() -> None:
    shown = offline_table(made_up_report(), [PEERS])
    assert "other 1.0" in shown.columns
    assert "2.00 s" in shown.rows[0]
    assert shown.rows[0][shown.columns.index("ratio")] == "2.00"


def test_a_shrunk_workload_is_compared_with_nothing() -> None:
    shown = offline_table(made_up_report(shrunk_by=4), [PEERS])
    assert shown.rows[0][1] == "chat / 4"
    assert shown.rows[0][shown.columns.index("ratio")] == ""


def test_start_up_is_shown_by_phase() -> None:
    table = startup_table(made_up_report(), [PEERS])
    assert table.columns == ["model", "import", "load", "total", "other 1.0"]
    assert table.rows == [["tiny", "1.50", "0.500", "2.00", "60.0"]]


def test_of_reading_and_arithmetic_the_longer_one_counts_in_each_kind_of_kernel() -> None:
    # Weights 4 s against 1 s of products; keys and values 1 s against 3 s of attention.
    assert floor_s(WORK, gb_per_s=1.0, tflops=1.0) == pytest.approx(4 + 3)
    [row] = floor_table(made_up_report(), gb_per_s=100.0, tflops=100.0).rows
    assert row[-1] == f"{1.0 / 0.07:.2f}"


def test_a_peer_of_another_device_is_not_shown_at_all() -> None:
    elsewhere = msgspec.structs.replace(PEERS, device="a GPU of another kind")
    report = made_up_report()
    assert offline_table(report, [elsewhere]) == offline_table(report, [])
    assert startup_table(report, [elsewhere]) == startup_table(report, [])
    assert offline_table(report, [elsewhere, PEERS]) == offline_table(report, [PEERS])
    assert "ratio" in offline_table(report, [PEERS]).columns


def test_the_committed_peers_of_each_device_hold_ten_engine_rows_and_fifteen_cases() -> None:
    peers = load_peers()
    assert len({one.device for one in peers}) == len(peers) >= 1
    for one in peers:
        assert measured_on(one.device, peers) == one
        assert len(one.rows) == 10
        assert len(one.attention) == 15
        assert all(one.row(row.model, row.workload) == row for row in one.rows)
    assert measured_on("another device", peers) is None
