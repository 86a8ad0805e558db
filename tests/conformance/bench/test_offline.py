"""The offline benchmark on a tiny model: every row is there, and says what was run."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pagetwin.conformance.bench.offline import OfflineOptions, measure
from pagetwin.conformance.bench.offline_result import OfflineReport
from pagetwin.conformance.bench.workloads import WORKLOADS, digest, shrunk
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.trace import ResetRecord, SubmitRecord, read_history


class Silent:
    def begin(self, phase: str, total: int | None) -> None: ...

    def advance_to(self, done: int) -> None: ...


def options(model_folder: Path, *workloads: str, **knobs: Any) -> OfflineOptions:
    return OfflineOptions(
        models=(str(model_folder),),
        workloads=workloads,
        repeats=knobs.pop("repeats", 2),
        probe=knobs.pop("probe", False),
        shrink_by=knobs.pop("shrink_by", 64),
        knobs={"load_format": "dummy", "num_blocks": 64, "max_num_seqs": 8, **knobs},
    )


def run(some: OfflineOptions, record: Path | None = None) -> OfflineReport:
    return measure(some, some.models[0], Silent(), record)


@pytest.fixture(scope="module")
def report(model_folder: Path) -> OfflineReport:
    return run(options(model_folder, *WORKLOADS))


def test_every_workload_is_a_row_under_its_device_model_and_name(report: OfflineReport) -> None:
    assert [row.key for row in report.rows] == [f"{report.device}/tiny/{n}" for n in WORKLOADS]


def test_rates_are_those_of_the_fastest_pass(report: OfflineReport) -> None:
    for row in report.rows:
        assert row.seconds == tuple(one.seconds for one in row.passes)
        assert len(row.seconds) == 2
        assert row.output_tokens_per_s == row.output_tokens / min(row.seconds)
        assert row.total_tokens_per_s > row.output_tokens_per_s


def test_a_row_says_which_tokens_were_run(report: OfflineReport) -> None:
    for row in report.rows:
        workload = shrunk(WORKLOADS[row.workload](96), 64)
        assert row.workload_sha256 == digest(workload)
        assert row.num_requests == len(workload)
        assert row.shrunk_by == 64


def test_each_pass_starts_with_an_empty_prefix_cache(report: OfflineReport) -> None:
    for row in report.rows:
        first, second = row.passes
        assert first.steps == second.steps >= row.work.min_steps
        assert first.prefix_hit_tokens == second.prefix_hit_tokens
        assert first.prefix_queries == row.prompt_tokens


def test_a_report_says_what_it_depends_on(report: OfflineReport) -> None:
    run = report.models["tiny"]
    assert run.config["model"]["model"] == "tiny"
    assert run.config["cache"]["num_blocks"] == 64
    assert {"import", "load", "rest"} <= set(run.startup_s)
    assert all(seconds > 0 for seconds in run.startup_s.values())
    assert report.seed == 0
    assert report.machine["cores"]
    assert report.versions["torch"]
    assert len(report.sources_sha256) == 64


def test_a_report_survives_its_file(report: OfflineReport) -> None:
    written = msgspec.json.encode(report)
    assert msgspec.json.decode(written, type=OfflineReport) == report


def test_preemptions_are_counted(model_folder: Path) -> None:
    [row] = run(options(model_folder, "uniform", num_blocks=9, shrink_by=16, repeats=1)).rows
    assert row.best.preemptions > 0


def test_a_history_of_every_pass_can_be_kept(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    report = run(options(model_folder, "single", repeats=3), path)
    resets = [record for record in read_history(path) if isinstance(record, ResetRecord)]
    assert len(resets) == 1 + 3, "the warm-up, and each repeat"
    assert all(record.done for record in resets)
    assert report.recorded


def test_calibration_runs_stand_in_the_history_and_in_no_row(
    model_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "steps.jsonl"
    report = run(options(model_folder, "single", probe=True, max_num_seqs=3), path)
    assert [row.workload for row in report.rows] == ["single"]
    ids = [r.request.request_id for r in read_history(path) if isinstance(r, SubmitRecord)]
    kinds = [name.split("/")[0] for name in ids]
    assert list(dict.fromkeys(kinds)) == ["warm-up", "probe", "single"]


def test_a_workload_that_does_not_fit_is_refused_by_its_longest_request(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'uniform' .* 25 tokens.*max_model_len=20"):
        run(options(model_folder, "uniform", max_model_len=20))


def test_an_unknown_knob_is_refused(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="max_num_sequences"):
        run(options(model_folder, "single", max_num_sequences=3))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"workloads": ("tweets",)}, "tweets"),
        ({"repeats": 0}, "repeats=0"),
        ({"models": ("a/tiny", "b/tiny")}, "tiny"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        OfflineOptions(**{"models": ("tiny",), **wrong})
