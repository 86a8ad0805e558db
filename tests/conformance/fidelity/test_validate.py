"""Validation: times that are known are found true, a wrong decision or profile is not."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagetwin.conformance.fidelity.decisions import judge_decisions
from pagetwin.conformance.fidelity.timing import compare
from pagetwin.conformance.fidelity.validate import load_of, validate
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.trace import HistoryWriter, PlanRecord, ResultRecord, read_history
from pagetwin.simulator.cost_model import LinearCostModel
from pagetwin.simulator.costs.calibration import calibrate
from pagetwin.simulator.costs.fitting import with_launches_of
from pagetwin.simulator.costs.profile import Profile
from pagetwin.simulator.recordings.reading import compact_file, read_records
from pagetwin.simulator.recordings.rerun import Seen, recorded, rerun
from pagetwin.simulator.recordings.runs import read_runs
from pagetwin.simulator.recordings.steps import StepTable
from pagetwin.simulator.recordings.whatif import changed_knobs, parse_changes, what_if

Write = Callable[..., Path]

LAUNCH_S = 20e-3
"""Longer than any step takes."""


class Silent:
    def begin(self, phase: str, total: int | None) -> None: ...

    def advance_to(self, done: int) -> None: ...


@pytest.fixture
def profile(write_history: Write) -> Profile:
    return calibrate([write_history("calm", rate=4.0), write_history("busy", rate=40.0)])


def test_a_workload_that_was_not_fitted_to_is_predicted(
    write_history: Write, profile: Profile
) -> None:
    report = validate(profile, [write_history("other", rate=15.0)], Silent())
    [run] = report.runs
    assert not run.was_fitted_to
    assert run.num_requests == 60
    assert [measure.name for measure in run.measures][:2] == ["throughput", "ttft_p50"]
    for measure in run.measures:
        assert abs(measure.error) < 0.05, measure
        assert measure.low <= measure.high
    [judged] = report.decisions.values()
    assert judged.difference is None
    assert judged.decisions > 1000


def test_the_true_costs_give_back_exactly_what_was_recorded(write_history: Write) -> None:
    costs = LinearCostModel(constant_s=3e-3, per_prefill_token_s=1e-5, per_context_token_s=1e-7)
    [run] = read_runs(read_records(write_history(rate=30.0, costs=costs)))
    measured, again = recorded(run), rerun(run, costs).seen
    assert len(measured) == len(again) == 60
    for real, twin in zip(measured, again, strict=True):
        assert real.request_id == twin.request_id
        assert real.num_output_tokens == twin.num_output_tokens
        assert twin.ttft_s == pytest.approx(real.ttft_s, abs=1e-9)
        assert twin.e2e_s == pytest.approx(real.e2e_s, abs=1e-9)


def test_what_a_profile_was_fitted_to_is_said(write_history: Write, profile: Profile) -> None:
    [run] = validate(profile, [write_history("calm", rate=4.0)], Silent()).runs
    assert run.was_fitted_to


def test_each_workload_can_be_judged_by_the_others(write_history: Write, profile: Profile) -> None:
    paths = [write_history("calm", rate=4.0), write_history("busy", rate=40.0)]
    report = validate(profile, paths, Silent(), leave_one_out=True)
    assert report.left_one_out
    assert [run.workload for run in report.runs] == ["calm", "busy"]
    assert not any(run.was_fitted_to for run in report.runs)
    usual = validate(profile, paths, Silent())
    assert all(run.was_fitted_to for run in usual.runs)
    assert [run.measures for run in report.runs] != [run.measures for run in usual.runs]


def changed(path: Path) -> None:
    """One decision of the history becomes another."""
    records = list(read_history(path))
    place = [i for i, r in enumerate(records) if isinstance(r, PlanRecord)][30]
    record = records[place]
    assert isinstance(record, PlanRecord)
    row, *others = record.plan.scheduled
    other = msgspec.structs.replace(row, num_scheduled_tokens=row.num_scheduled_tokens + 1)
    plan = msgspec.structs.replace(record.plan, scheduled=(other, *others))
    records[place] = msgspec.structs.replace(record, plan=plan)
    with HistoryWriter(path) as writer:
        for one in records:
            writer.write(one)


def test_with_the_launches_of_the_run_only_other_errors_are_left(
    write_history: Write, profile: Profile
) -> None:
    """A host that launches more slowly than the one that was fitted to."""
    history = write_history("other", rate=15.0)
    slow = history.with_name("slow.jsonl")
    with HistoryWriter(slow) as writer:
        for record in read_history(history):
            if isinstance(record, ResultRecord):
                timings = msgspec.structs.replace(record.timings, execute_s=LAUNCH_S)
                record = msgspec.structs.replace(record, timings=timings)
            writer.write(record)
    [run] = read_runs(read_records(slow))
    found = with_launches_of(profile.costs, run.steps).eager_host
    assert found.launch_s == pytest.approx(LAUNCH_S)
    assert profile.costs.eager_host.launch_s != found.launch_s
    assert with_launches_of(profile.costs, StepTable.of([])) == profile.costs
    usual = validate(profile, [slow], Silent())
    report = validate(profile, [slow], Silent(), own_launches=True)
    assert report.own_launches
    assert not usual.own_launches
    errors = [one.runs[0].step_times.total_error for one in (usual, report)]
    assert errors[1] > errors[0] + 0.2, "steps take at least their launch"


def test_a_wrong_decision_is_found_however_the_history_is_kept(
    write_history: Write, tmp_path: Path
) -> None:
    path, compact = write_history(), tmp_path / "it.compact.xz"
    compact.write_bytes(compact_file(path))
    assert judge_decisions(path) == judge_decisions(compact)
    changed(path)
    compact.write_bytes(compact_file(path))
    for one in (path, compact):
        judged = judge_decisions(one)
        assert judged.difference is not None
        assert judged.steps in (30, 31)


def test_a_profile_of_another_device_is_refused(write_history: Write, profile: Profile) -> None:
    path = write_history("other", device="NVIDIA H100 80GB HBM3")
    with pytest.raises(ConfigError, match="device 'cpu', not 'NVIDIA H100"):
        validate(profile, [path], Silent())


def test_other_code_of_the_same_version_is_noted(write_history: Write, profile: Profile) -> None:
    versions = {"pagetwin": "1.0", "sources": "cd" * 32}
    report = validate(profile, [write_history("other", versions=versions)], Silent())
    assert "not the same code" in report.notes[0]


@pytest.mark.parametrize(
    ("label", "load"),
    [
        ("chat/at-once/0", "all at once"),
        ("chat/poisson:60%/1", "below (60%)"),
        ("chat/poisson:95%/0", "at (95%)"),
        ("chat/poisson:130%/0", "above (130%)"),
        ("chat/poisson:12/0", "poisson:12"),
        ("run-1", "run-1"),
    ],
)
def test_the_load_is_read_off_the_label(label: str, load: str) -> None:
    assert load_of(label) == load


@settings(max_examples=20)
@given(st.floats(0.5, 2.0), st.integers(0, 100))
def test_a_common_factor_is_the_error_and_the_interval(factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0.1, 1.0, (40, 2)), axis=1)
    arrivals = rng.uniform(0, 1, 40)

    def seen(scale: float) -> list[Seen]:
        return [
            Seen(
                request_id=str(number),
                arrival_s=arrival,
                first_token_s=arrival + scale * first,
                finish_s=arrival + scale * last,
                num_output_tokens=5,
            )
            for number, (arrival, (first, last)) in enumerate(zip(arrivals, times, strict=True))
        ]

    measures = compare(seen(1.0), seen(factor))
    assert len(measures) == 10
    for measure in measures[1:]:
        for value in (measure.error, measure.low, measure.high):
            assert value == pytest.approx(factor - 1, abs=1e-6)


def test_whatif_predicts_the_run_that_was_made_with_the_other_knob(
    write_history: Write, profile: Profile
) -> None:
    wide = write_history("wide", rate=60.0)
    narrow = write_history("wide", rate=60.0, max_num_seqs=4).rename(wide.with_name("narrow.jsonl"))
    wide = write_history("wide", rate=60.0)
    [real] = read_runs(read_records(narrow))
    [result] = what_if(wide, profile, parse_changes(["max_num_seqs=4"]))
    measured = np.median([one.e2e_s for one in recorded(real)])
    predicted = np.median([one.e2e_s for one in result.changed.seen])
    same = np.median([one.e2e_s for one in result.same.seen])
    assert predicted == pytest.approx(measured, rel=0.05)
    assert same < 0.7 * measured, "the knob matters here"


def test_bad_changes_are_explained(write_history: Write) -> None:
    with pytest.raises(ConfigError, match="KNOB=VALUE"):
        parse_changes(["max_num_seqs"])
    with pytest.raises(ConfigError, match="did you mean 'max_num_seqs'"):
        parse_changes(["max_num_sequences=3"])
    with pytest.raises(ConfigError, match="nothing is to change"):
        parse_changes([])
    [run] = read_runs(read_records(write_history()))
    with pytest.raises(ConfigError, match="max_num_seqs"):
        changed_knobs(run.header, {"max_num_seqs": "many"})
    with pytest.raises(ConfigError, match="is below 1"):
        changed_knobs(run.header, {"max_num_seqs": "0"})
    cache, scheduler = changed_knobs(
        run.header, {"enable_prefix_caching": "false", "max_num_batched_tokens": "32"}
    )
    assert not cache.enable_prefix_caching
    assert scheduler.max_num_batched_tokens == 32
