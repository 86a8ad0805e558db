"""Open loops: requests come when they are due, whatever the engine does, and tell what they saw."""

from pathlib import Path

import numpy as np
import pytest

from pagetwin.conformance.bench.arrivals import Arrivals
from pagetwin.conformance.bench.offline import OfflineOptions, measure
from pagetwin.conformance.bench.offline_result import OfflineReport
from pagetwin.conformance.bench.passes import serve
from pagetwin.conformance.bench.workloads import BenchRequest
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.trace import HeaderRecord, HistoryWriter, SubmitRecord, read_history


class Silent:
    def begin(self, phase: str, total: int | None) -> None: ...

    def advance_to(self, done: int) -> None: ...


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    times = Arrivals.parse("poisson:20").times(4000, closed_rate=1.0)
    gaps = np.diff([0.0, *times])
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.05), "as long as its mean: exponential"


def test_a_share_is_one_of_the_closed_loops_rate() -> None:
    half = Arrivals.parse("poisson:50%")
    assert half.times(10, closed_rate=8.0) == Arrivals.parse("poisson:4").times(10, closed_rate=1.0)
    assert str(half) == "poisson:50%"
    assert Arrivals.parse(str(Arrivals(2.5))) == Arrivals(2.5)


@pytest.mark.parametrize("text", ["uniform:3", "poisson", "poisson:0", "poisson:-1", "poisson:nan"])
def test_other_arrivals_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="poisson:RATE"):
        Arrivals.parse(text)


class Clock:
    """Goes on by a second with each sleep of one, and by a quarter with each look."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def __call__(self) -> float:
        self.now += 0.25
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def test_requests_are_handed_in_when_due_and_the_engine_steps_meanwhile() -> None:
    history = HistoryWriter(keep=True)
    config = EngineConfig(
        cache=CacheConfig(num_blocks=32, block_size=4), scheduler=SchedulerConfig(max_model_len=64)
    )
    executor = FingerprintExecutor(config.cache, vocab_size=50)
    engine = LLMEngine(config, executor, vocab_size=50, history=history)
    workload = [BenchRequest([1, 2, 3], 6), BenchRequest([4, 5], 6), BenchRequest([6], 1)]
    clock = Clock()
    outputs = serve(engine, workload, [0.0, 1.0, 50.0], "some", clock=clock, sleep=clock.sleep)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [6, 6, 1]
    kinds = [type(record).__name__ for record in history.records[1:]]
    submissions = [i for i, kind in enumerate(kinds) if kind == "SubmitRecord"]
    assert "PlanRecord" in kinds[submissions[0] : submissions[1]], "it steps before the second"
    assert clock.slept > 30, "it waits for the third"
    submitted = [r.request for r in history.records if isinstance(r, SubmitRecord)]
    assert [request.request_id for request in submitted] == [f"some/{i:06d}" for i in range(3)]
    assert [request.arrival_s - submitted[0].arrival_s for request in submitted] == [0, 1, 50]


@pytest.fixture(scope="module")
def recorded(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OfflineReport, Path]:
    path = tmp_path_factory.mktemp("histories") / "steps.jsonl"
    options = OfflineOptions(
        models=(str(model_folder),),
        workloads=("chat",),
        arrivals=(Arrivals(0.5, is_relative=True), Arrivals(4.0, is_relative=True)),
        repeats=1,
        shrink_by=64,
        knobs={"load_format": "dummy", "num_blocks": 64, "max_num_seqs": 4},
    )
    return measure(options, options.models[0], Silent(), path), path


def test_an_open_loop_is_a_row_with_what_requests_saw(
    recorded: tuple[OfflineReport, Path],
) -> None:
    report, _ = recorded
    below, above = report.online
    assert below.key == f"{report.rows[0].key}/poisson:50%"
    assert above.offered_per_s == pytest.approx(8 * below.offered_per_s)
    for row in report.online:
        latency = row.passes[0].latency_ms
        assert 0 < latency["ttft_p50"] <= latency["ttft_p95"] <= latency["ttft_p99"]
        assert latency["e2e_p50"] > latency["ttft_p50"]
        assert latency["tpot_p50"] > 0


def test_its_history_says_which_run_a_request_is_of_and_what_was_run_where(
    recorded: tuple[OfflineReport, Path],
) -> None:
    records = list(read_history(recorded[1]))
    submits = [record for record in records if isinstance(record, SubmitRecord)]
    runs = dict.fromkeys(r.request.request_id.rpartition("/")[0] for r in submits)
    assert list(runs) == ["warm-up", "chat/at-once/0", "chat/poisson:50%/0", "chat/poisson:400%/0"]
    for record in submits:
        assert record.time_s is not None
        assert record.request.arrival_s <= record.time_s
    header = records[0]
    assert isinstance(header, HeaderRecord)
    assert header.device == "cpu"
    assert header.dtype == "float32"
    assert header.model_config["num_hidden_layers"] == 2
    assert len(header.versions["sources"]) == 64
    assert header.knobs["enforce_eager"] == "false"
