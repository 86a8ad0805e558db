"""`pagetwin bench simulator`: both modes agree, and the table says what was measured."""

import json

import msgspec
import pytest

from pagetwin.cli import main
from pagetwin.conformance.bench.simulation import (
    SimulatorReport,
    check_agreement,
    simulate_here,
)
from pagetwin.engine.errors import ConfigError
from pagetwin.reports.simulator_table import load_simulator_peers, simulator_table


def test_the_command_measures_both_modes_and_keeps_the_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--requests", "60", "--long", "200", "--repeats", "1", "--json"]
    assert main(["bench", "simulator", *options]) == 0
    printed = capsys.readouterr().out
    report = msgspec.json.decode(printed, type=SimulatorReport)
    assert report.fast_forward_requests_per_cpu_s > report.stepping_requests_per_cpu_s > 0
    assert [(run.mode, run.num_requests) for run in report.runs] == [
        ("fast_forward", 60),
        ("stepping", 60),
        ("fast_forward", 200),
    ]
    assert report.runs[0].timings_crc32 == report.runs[1].timings_crc32
    for key in ("startup_s", "peak_rss_mb", "peak_rss_long_mb"):
        assert json.loads(printed)[key] > 0
    table = simulator_table(report, load_simulator_peers())
    assert [row[0] for row in table.rows][:2] == ["pagetwin, fast forward", "pagetwin, stepping"]
    assert "Vidur" in table.text()


def test_runs_that_disagree_are_not_reported() -> None:
    run = simulate_here("stepping", 20)
    check_agreement([run, simulate_here("fast_forward", 20)])
    with pytest.raises(ConfigError, match="must agree"):
        check_agreement([run, msgspec.structs.replace(run, timings_crc32=1)])


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--requests", "0"], "below 1"), (["--requests", "50", "--long", "50"], "not above")],
)
def test_counts_that_measure_nothing_are_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "simulator", *options]) == 2
    assert words in capsys.readouterr().err
