"""Calibration: known costs are found again, nothing falls, strangers are refused."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.cuda_graphs import graph_sizes as engine_graph_sizes
from pagetwin.engine.errors import ConfigError, TraceError
from pagetwin.engine.trace import HeaderRecord, ResultRecord, read_history
from pagetwin.simulator.cost_model import LinearCostModel, StepComposition
from pagetwin.simulator.costs.basis import Curve
from pagetwin.simulator.costs.calibration import Collected, calibrate, collect
from pagetwin.simulator.costs.datasheets import GPUS
from pagetwin.simulator.costs.fitting import held_out_error
from pagetwin.simulator.costs.graph_sizes import graph_sizes
from pagetwin.simulator.costs.model_shape import ModelShape
from pagetwin.simulator.costs.profile import read_profile
from pagetwin.simulator.costs.roofline import PERFECT, Roofline
from pagetwin.simulator.costs.step_costs import (
    CalibratedCosts,
    ContextCosts,
    EagerCosts,
    GraphCosts,
    HostCosts,
    HostLine,
    StepCosts,
)
from pagetwin.simulator.recordings.reading import read_records
from pagetwin.simulator.recordings.runs import read_runs
from pagetwin.simulator.recordings.steps import Step, StepTable
from pagetwin.simulator.step_clock import decode_parts

Write = Callable[..., Path]

small = st.floats(0, 1e-6)
curves = st.lists(st.floats(1e-5, 1e-3), min_size=1, max_size=5).map(
    lambda seconds: Curve(knots=tuple(range(1, 20 * len(seconds) + 1, 20)), seconds=tuple(seconds))
)
lines = st.builds(HostLine, constant_s=small, per_decode_s=small, per_prefill_token_s=small)
floors = st.none() | st.just(
    Roofline(
        shape=ModelShape(
            num_layers=2,
            hidden_size=64,
            num_attention_heads=4,
            num_kv_heads=2,
            head_size=16,
            intermediate_size=128,
            vocab_size=1000,
        ),
        gpu=GPUS["H100"],
        efficiency=PERFECT,
    )
)
models = st.builds(
    CalibratedCosts,
    st.builds(
        StepCosts,
        context=st.builds(
            ContextCosts,
            per_token_s=small,
            repeated_share=st.floats(0, 1),
            per_position_s=small,
            run=st.sampled_from([1, 64, 1024]),
            num_idle=st.sampled_from([1, 8]),
            tile=st.sampled_from([0, 2, 128]),
        ),
        graph=st.none() | st.builds(GraphCosts, products=curves),
        eager=st.builds(
            EagerCosts, products=curves, per_pair_s=small, per_chunk_s=small, per_sample_s=small
        ),
        graph_host=st.builds(HostCosts, before=lines, launch_s=small, after=lines),
    ),
    max_num_seqs=st.integers(1, 300),
    floor=floors,
)


@given(models, st.integers(1, 400), st.integers(0, 10**6), st.floats(0, 1), st.integers(0, 10**6))
def test_decode_steps_lie_exactly_on_their_line_to_its_end(
    model: CalibratedCosts, count: int, context: int, share: float, further: int
) -> None:
    repeated = int(context * share)
    base, slope, last = model.decode_line(count, context, repeated)
    assert last is None or last >= context
    assert slope >= 0
    for seen in (context, context + further if last is None else min(last, context + further)):
        ticks = model.ticks(decode_parts(count, seen, repeated))
        assert ticks == base + slope * seen >= 1


@given(
    models,
    st.integers(0, 5000),
    st.integers(0, 10**7),
    st.integers(0, 300),
    st.integers(0, 10**6),
    st.sampled_from(["prefill_area", "num_context_tokens"]),
)
def test_a_step_that_sees_more_never_takes_less(
    model: CalibratedCosts, tokens: int, area: int, decodes: int, context: int, more: str
) -> None:
    tokens = max(tokens, int(not decodes))
    parts = StepComposition(
        num_prefill_sequences=int(tokens > 0),
        num_prefill_tokens=tokens,
        prefill_area=area if tokens else 0,
        num_decode_sequences=decodes,
        num_context_tokens=context if decodes else 0,
        num_samples=decodes,
    )
    changed = msgspec.structs.replace(parts, **{more: getattr(parts, more) + 1})
    assert model.ticks(changed) >= model.ticks(parts)


@given(models, st.integers(1, 400), st.integers(0, 10**6), st.integers(0, 10**6))
def test_what_is_repeated_costs_less_and_never_less_than_nothing(
    model: CalibratedCosts, count: int, context: int, repeated: int
) -> None:
    plain = model.ticks(decode_parts(count, context))
    assert 1 <= model.ticks(decode_parts(count, context, min(repeated, context))) <= plain


@given(models, st.integers(1, 300), st.integers(0, 10**6))
def test_no_step_is_under_the_roofline(model: CalibratedCosts, count: int, context: int) -> None:
    if model.floor is None:
        return
    parts = decode_parts(count, context, context // 2)
    assert model.ticks(parts) >= model.floor.ticks(parts)


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 8, 64, 100, 256, 300, 512])
def test_graph_sizes_are_the_engines(max_num_seqs: int) -> None:
    assert graph_sizes(max_num_seqs) == engine_graph_sizes(max_num_seqs)


def test_known_costs_are_found_and_predict_a_workload_that_was_not_seen(
    write_history: Write,
) -> None:
    profile = calibrate([write_history("calm", rate=4.0), write_history("busy", rate=40.0)])
    assert set(profile.cross_validation) == {"calm", "busy"}
    for held_out in profile.cross_validation.values():
        assert abs(held_out.total_error) < 0.02
    [run] = read_runs(read_records(write_history("other", rate=20.0, count=100)))
    error = held_out_error(profile.cost_model(), run.steps)
    assert error.steps > 100
    assert abs(error.total_error) < 0.02
    assert error.mean_absolute_error < 0.05


def test_fitted_to_some_workloads_it_is_judged_by_the_others(write_history: Write) -> None:
    paths = [write_history("probe", rate=40.0), write_history("calm", rate=4.0)]
    profile = calibrate(paths, ["probe"])
    assert profile.not_fitted_to == ("calm",)
    assert set(profile.cross_validation) == {"calm"}
    assert abs(profile.cross_validation["calm"].total_error) < 0.02
    assert set(calibrate(paths).cross_validation) == {"calm"}, "nothing is judged by calibration"


def test_of_several_passes_in_a_process_the_first_is_not_fitted_to() -> None:
    def steps(seconds: float) -> StepTable:
        one = Step(
            parts=decode_parts(1, 5),
            seconds=seconds,
            device_seconds=0.0,
            graph_size=0,
            wait_seconds=0.0,
            is_first=False,
            is_ahead=False,
        )
        return StepTable.of([one])

    scheduler = SchedulerConfig(max_model_len=64)
    collected = Collected(HeaderRecord(cache=CacheConfig(num_blocks=9), scheduler=scheduler))
    collected.passes = {
        ("closed", "chat"): [steps(9.0), steps(1.0), steps(2.0)],
        ("open", "chat"): [steps(9.0), steps(3.0)],
        ("once", "chat"): [steps(4.0)],
    }
    assert collected.by_workload()["chat"].seconds.tolist() == [1, 2, 3, 4]


def test_a_workload_is_one_however_it_arrives_and_each_history_has_a_first_pass(
    write_history: Write, tmp_path: Path
) -> None:
    for folder in ("chat", "probe"):
        (tmp_path / folder).mkdir()
    paths = [write_history(name) for name in ("chat/at-once", "chat/poisson:60%", "probe/prompt-2")]
    assert list(collect(paths).passes) == [
        (str(paths[0]), "chat"),
        (str(paths[1]), "chat"),
        (str(paths[2]), "probe/prompt-2"),
    ]


def test_a_profile_survives_its_file_and_says_what_it_is_of(
    write_history: Write, tmp_path: Path
) -> None:
    profile = calibrate([write_history("calm"), write_history("busy", rate=40.0)])
    path = tmp_path / "profile.json"
    path.write_bytes(msgspec.json.encode(profile))
    assert read_profile(path) == profile
    assert profile.label.startswith(
        "calibrated: tiny on cpu; step times of workloads left out were within"
    )
    assert [source.name for source in profile.fitted_to] == ["calm.jsonl", "busy.jsonl"]
    assert profile.measured_up_to["decode_sequences"] <= 16


def test_one_workload_is_said_to_be_unvalidated(write_history: Write) -> None:
    assert "not validated" in calibrate([write_history()]).label


def test_a_profile_of_another_subject_is_refused(write_history: Write) -> None:
    profile = calibrate([write_history()])
    profile.check(profile.subject)
    for change in ({"device": "NVIDIA H100"}, {"engine": "2.0"}, {"model_sha256": "0" * 64}):
        [(field, value)] = change.items()
        other = msgspec.structs.replace(profile.subject, **change)
        with pytest.raises(ConfigError, match=rf"{field} .* not '{value}'.*calibrate"):
            profile.check(other)


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ({"device": "NVIDIA H200"}, "device"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"versions": {"pagetwin": "1.0", "sources": "cd" * 32}}, "engine sources"),
    ],
)
def test_histories_of_two_subjects_are_not_mixed(
    write_history: Write, header: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"two\.jsonl .*{named}"):
        calibrate([write_history("one"), write_history("two", **header)])


def test_bad_histories_are_explained(write_history: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not say model_config"):
        calibrate([write_history(model_config={})])
    short = tmp_path / "short.jsonl"
    short.write_bytes(b"".join(write_history().read_bytes().splitlines(keepends=True)[:12]))
    with pytest.raises(ConfigError, match="measured steps are too few to fit"):
        calibrate([short])
    with pytest.raises(ConfigError, match=r"no run of workload other .* hold steady"):
        calibrate([write_history()], ["other"])
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(write_history().read_bytes()[:-40])
    with pytest.raises(TraceError, match=r"cut\.jsonl:\d+"):
        calibrate([cut])
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"schema": "pagetwin.profile/0"}')
    with pytest.raises(ConfigError, match=r"schema 'pagetwin\.profile/0'"):
        read_profile(wrong)
    wrong.write_text("{")
    with pytest.raises(ConfigError, match="is no profile"):
        read_profile(wrong)


def test_times_of_a_history_are_those_of_its_steps(write_history: Write) -> None:
    path = write_history(rate=100.0, costs=LinearCostModel(constant_s=1e-3))
    [run] = read_runs(read_records(path))
    results = [record for record in read_history(path) if isinstance(record, ResultRecord)]
    assert len(run.steps) == len(results) > 100
    assert run.steps.seconds == pytest.approx(1e-3)
    assert run.workload == "steady"
