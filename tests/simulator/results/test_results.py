"""What a result says is what happened."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.cluster.description import Admission, Policy, Pool
from pagetwin.simulator.cost_model import LinearCostModel
from pagetwin.simulator.results.bill import IDLE_SHARE, bill
from pagetwin.simulator.results.files import write_perfetto, write_requests, write_timeline
from pagetwin.simulator.results.report import report_of
from pagetwin.simulator.results.result import Result
from pagetwin.simulator.results.slo import Slo, SloTerm, parse_slo
from pagetwin.simulator.results.summary import spread, summarise, weighted_spread
from pagetwin.simulator.simulate import simulate

POOL = Pool(
    cache=CacheConfig(num_blocks=64, block_size=4),
    scheduler=SchedulerConfig(max_model_len=64, max_num_seqs=4),
    cost_model=LinearCostModel(constant_s=0.5),
    num_gpus=2,
    price_per_gpu_h=3.0,
    power_per_gpu_w=500.0,
)
SPEC = "poisson:rate=1,input=5,output=uniform:1:8,requests=60"


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(SPEC, POOL, Policy(admission=Admission(max_outstanding=6)), seed=1)


def test_a_summary_agrees_with_the_columns(result: Result) -> None:
    summary, rows = summarise(result), result.requests
    finished = rows["outcome"] == 0
    assert 0 < summary.num_rejected == (~finished).sum()
    assert summary.num_finished + summary.num_rejected == summary.num_requests == 60
    assert summary.ttft_s is not None
    assert summary.tpot_s is not None
    assert summary.ttft_s.p95 == np.percentile(rows["ttft_s"][finished], 95)
    # Steps of half a second, and nobody is preempted: all tokens are half a second apart.
    assert summary.tpot_s.mean == summary.tpot_s.max == 0.5
    assert summary.itl_s is not None
    assert summary.itl_s.count == (rows["num_output_tokens"][finished] - 1).sum()
    assert summary.itl_s.p99 == pytest.approx(0.5, rel=0.003)
    assert summary.requests_per_s == pytest.approx(finished.sum() / result.duration_s)
    assert 0 < summary.kv_use_mean < summary.kv_use_max < 1
    assert 0 < summary.busy_share < 1


def test_a_bill_counts_gpus_while_they_are_paid_for(result: Result) -> None:
    (node,), found = result.nodes, bill(result)
    assert found.gpu_hours == pytest.approx(2 * result.end_s / 3600)
    assert found.cost == pytest.approx(3.0 * found.gpu_hours)
    loaded = node.busy_s + IDLE_SHARE * (result.end_s - node.busy_s)
    assert found.energy_kwh == pytest.approx(2 * 0.5 * loaded / 3600)


def test_percentiles_of_counted_values_are_those_of_all_of_them() -> None:
    values, counts = np.array([1.0, 2.0, 5.0]), np.array([50, 45, 5])
    found = weighted_spread(values, counts)
    assert found is not None
    assert (found.p50, found.p90, found.p95, found.p99, found.max) == (1.0, 2.0, 2.0, 5.0, 5.0)
    assert found.mean == np.repeat(values, counts).mean()
    assert spread(np.array([])) is None


def test_goodput_counts_requests_within_every_limit(result: Result) -> None:
    slo = parse_slo("ttft_p90<900ms,e2e<3s")
    ttft, e2e = result.requests["ttft_s"], result.requests["e2e_s"]
    good = (result.requests["outcome"] == 0) & (ttft < 0.9) & (e2e < 3)
    assert 0 < slo.num_good(result) == good.sum() < 60
    summary = summarise(result, slo)
    assert summary.goodput is not None
    assert summary.goodput.share == good.sum() / 60
    first, second = summary.goodput.verdicts
    assert first.value_s == np.percentile(result.served("ttft_s"), 90)
    assert (second.value_s, second.met) == (result.served("e2e_s").max(), False)


def test_slos_are_read_or_explained() -> None:
    assert parse_slo("ttft_p99.9 < 1.5s, tpot<40ms") == Slo(
        terms=(
            SloTerm(metric="ttft", percentile=99.9, limit_s=1.5),
            SloTerm(metric="tpot", percentile=100, limit_s=0.04),
        )
    )
    for text in ("", "ttft", "ttft<5", "speed<5ms", "ttft_p101<5ms", "ttft_p0<5ms", "e2e<0s"):
        with pytest.raises(ConfigError, match="slo"):
            parse_slo(text)
    with pytest.raises(ConfigError, match="not a number"):
        parse_slo("ttft<1.2.3s")


def test_the_files_hold_every_request(result: Result, tmp_path: Path) -> None:
    write_requests(result, tmp_path / "requests.csv")
    write_timeline(result, tmp_path / "timeline.csv")
    write_perfetto(result, tmp_path / "trace.json")
    with (tmp_path / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["request_id"] for row in rows] == list(result.request_ids)
    assert {row["outcome"] for row in rows} == {"finished", "rejected"}
    for place, row in enumerate(rows):
        rejected = row["outcome"] == "rejected"
        assert (row["ttft_s"] == "") == rejected == bool(row["reason"])
        if not rejected:
            assert float(row["e2e_s"]) == pytest.approx(result.requests["e2e_s"][place])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    begins = [event for event in events if event["ph"] == "b"]
    ends = [event for event in events if event["ph"] == "e"]
    assert len(begins) == len(ends) > 60
    assert all(event["ts"] >= 0 for event in begins)
    header = (tmp_path / "timeline.csv").read_text().splitlines()[0]
    assert header.split(",") == list(result.timeline)


def test_several_seeds_have_intervals_and_one_has_none() -> None:
    runs = [simulate(SPEC, POOL, seed=seed) for seed in range(3)]
    report = report_of(runs, workload=SPEC, settings={})
    interval = report.intervals["ttft_s.p50"]
    assert interval.low is not None
    assert interval.low < interval.value
    values = [summarise(run).ttft_s for run in runs]
    assert interval.value == pytest.approx(np.mean([v.p50 for v in values if v is not None]))
    assert report_of(runs[:1], workload=SPEC, settings={}).intervals == {}


def test_a_queue_that_never_settles_has_no_percentiles_of_waiting() -> None:
    spec = "poisson:rate=4,input=5,output=8,requests=400"
    report = report_of([simulate(spec, POOL)], workload=spec, settings={})
    assert report.is_saturated
    (run,) = report.runs
    assert (run.ttft_s, run.e2e_s, run.queue_s) == (None, None, None)
    assert run.tpot_s is not None
    calm = "poisson:rate=0.3,input=5,output=8,requests=200"
    settled = report_of([simulate(calm, POOL)], workload=calm, settings={})
    assert not settled.is_saturated
    assert settled.runs[0].ttft_s is not None
