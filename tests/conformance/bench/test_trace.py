"""A trace holds every phase and layer of the steps that were asked for, each inside its own."""

import gzip
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pagetwin.conformance.bench.offline import Started, start
from pagetwin.conformance.bench.passes import generate
from pagetwin.conformance.bench.trace import _GPU_RUNNER, layer_ranges, phase_probes, record
from pagetwin.conformance.bench.workloads import single
from pagetwin.engine.errors import ConfigError

NUM_OUTPUTS = 6


@dataclass(frozen=True)
class Range:
    name: str
    start: float
    end: float

    def holds(self, other: "Range") -> bool:
        return self.start <= other.start and other.end <= self.end


@pytest.fixture(scope="module")
def started(model_folder: Path) -> Started:
    knobs = {"load_format": "dummy", "num_blocks": 64, "max_num_seqs": 4}
    return start(str(model_folder), knobs, started_s=time.perf_counter())


def run(started: Started, path: Path, **window: int) -> Any:
    workload = single(90, num_prompt_tokens=16, num_output_tokens=NUM_OUTPUTS)
    return record(
        started.llm.engine,
        started.loaded.model,
        lambda: generate(started.llm, workload),
        path,
        **window,
    )


def read_ranges(text: str) -> list[Range]:
    events = json.loads(text)["traceEvents"]
    return [
        Range(event["name"], event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "user_annotation"
    ]


def test_every_phase_and_layer_is_there_and_lies_in_its_own(
    started: Started, tmp_path: Path
) -> None:
    recording = run(started, tmp_path / "trace.json", skip=0, num_steps=3)
    ranges = read_ranges((tmp_path / "trace.json").read_text())
    by_name: dict[str, list[Range]] = {}
    for one in ranges:
        by_name.setdefault(one.name, []).append(one)
    assert recording.num_steps == 3
    assert len(by_name["step"]) == 3
    for phase in ("schedule", "prepare", "forward", "sample", "update"):
        assert len(by_name[phase]) >= 3
        for one in by_name[phase]:
            assert any(step.holds(one) for step in by_name["step"]), one
    for layer in range(2):
        assert len(by_name[f"layer {layer}"]) == 3
        for one in by_name[f"layer {layer}"]:
            assert any(forward.holds(one) for forward in by_name["forward"]), one
        for part in ("attention", "mlp"):
            inner = by_name[f"layer {layer} {part}"]
            assert len(inner) == 3
            for one in inner:
                assert any(outer.holds(one) for outer in by_name[f"layer {layer}"]), one
    totals = {total.name: total for total in recording.ranges}
    assert totals["step"].calls == 3
    assert totals["step"].ms >= totals["forward"].ms > 0


def test_steps_before_the_window_are_left_out(started: Started, tmp_path: Path) -> None:
    recording = run(started, tmp_path / "trace.json", skip=2, num_steps=100)
    assert recording.num_steps == NUM_OUTPUTS - 2
    ranges = read_ranges((tmp_path / "trace.json").read_text())
    assert sum(one.name == "step" for one in ranges) == NUM_OUTPUTS - 2


def test_a_name_in_gz_is_compressed(started: Started, tmp_path: Path) -> None:
    run(started, tmp_path / "trace.json.gz", skip=0, num_steps=1)
    with gzip.open(tmp_path / "trace.json.gz", "rt") as file:
        assert read_ranges(file.read())


def test_a_window_behind_the_last_step_is_refused(started: Started, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"skip=50 .* 6 steps"):
        run(started, tmp_path / "trace.json", skip=50, num_steps=1)
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_on_the_engine_or_the_model(started: Started, tmp_path: Path) -> None:
    run(started, tmp_path / "trace.json", skip=0, num_steps=1)
    for owner, method, _ in phase_probes(started.llm.engine):
        assert method not in vars(owner)
    model: Any = started.loaded.model
    for module, _ in layer_ranges(model):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert started.llm.engine.on_step is None


def test_the_gpu_runner_has_the_methods_that_are_watched() -> None:
    from pagetwin.engine.gpu_runner import GpuRunner
    from pagetwin.engine.step_program import StepProgram

    for path in _GPU_RUNNER:
        owner = StepProgram if path.startswith("_program.") else GpuRunner
        assert hasattr(owner, path.removeprefix("_program.")), path
