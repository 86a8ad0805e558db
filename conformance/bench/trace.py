"""Records where the time of a model's steps goes: a range per phase and per layer, GPU kernels.

The ranges are put around methods and modules from outside, for as long as the recording runs;
engine and models know nothing of it. Launched from a CUDA graph, kernels have no layer: per-layer
ranges need `enforce_eager`.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from pagetwin.conformance.bench.probes import around
from pagetwin.engine.errors import ConfigError

if TYPE_CHECKING:
    from pagetwin.engine.core import CompletedStep
    from pagetwin.engine.llm_engine import LLMEngine

PHASES = ("schedule", "prepare", "forward", "sample", "wait", "update", "output")

# By attribute of the runner, in either class; a name that is gone is an error, not a silence.
_RUNNER = {"kv_cache.apply": "prepare", "batch.apply": "prepare", "batch.build_inputs": "prepare"}
_PLAIN_RUNNER = {"_forward": "forward", "_sample": "sample"}
_GPU_RUNNER = {
    "_plan_launch": "prepare",
    "_arrays": "prepare",
    "_run": "forward",
    "_program.draw": "sample",
    "_finish": "wait",
}
_LAYER = re.compile(r"layers\.(\d+)(?:\.(self_attn|mlp))?")
_PARTS = {None: "", "self_attn": " attention", "mlp": " mlp"}


def phase_probes(engine: "LLMEngine") -> Iterator[tuple[Any, str, str]]:
    """(owner, method, phase) of everything that a step consists of."""
    from pagetwin.engine.model_runner import ModelRunner

    core = engine.core
    yield core, "step", "step"
    yield core.scheduler, "schedule", "schedule"
    yield core.scheduler, "update", "update"
    yield engine._processor, "collect", "output"
    runner = core._executor
    inner = _PLAIN_RUNNER if type(runner) is ModelRunner else _GPU_RUNNER
    for path, phase in (_RUNNER | inner).items():
        owner, _, method = path.rpartition(".")
        yield (getattr(runner, owner) if owner else runner), method, phase


@contextmanager
def ranges(engine: "LLMEngine", model: object) -> Iterator[None]:
    """While the body runs, phases and layers are ranges of whatever torch profiler is on."""
    with ExitStack() as stack:
        for owner, method, phase in phase_probes(engine):
            stack.enter_context(around(owner, method, partial(record_function, phase)))
        if isinstance(model, nn.Module):
            for module, name in layer_ranges(model):
                stack.enter_context(_hooked(module, name))
        yield


def layer_ranges(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The layers of a model, their attention and their MLP, each with its name."""
    for path, module in model.named_modules():
        match = _LAYER.fullmatch(path)
        if match is not None:
            yield module, f"layer {match[1]}{_PARTS[match[2]]}"


@contextmanager
def _hooked(module: nn.Module, name: str) -> Iterator[None]:
    open_ranges: list[record_function] = []

    def enter(*_: object) -> None:
        open_ranges.append(record_function(name))
        open_ranges[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(*_: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class StepRecorder:
    """Records `num_steps` steps after `skip`; `on_step` is for LLMEngine.on_step."""

    skip: int
    num_steps: int
    seen: int = 0
    profiler: profile = field(init=False)

    def __post_init__(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self.profiler = profile(activities=activities)
        if self.skip == 0:
            self.profiler.start()

    def on_step(self, completed: "CompletedStep") -> None:
        self.seen += 1
        if self.seen == self.skip:
            self.profiler.start()
        elif self.seen == self.skip + self.num_steps:
            self.profiler.stop()

    @property
    def num_recorded(self) -> int:
        return max(0, min(self.seen - self.skip, self.num_steps))

    def finish(self) -> None:
        """The run is over; it may have had fewer steps."""
        if self.skip <= self.seen < self.skip + self.num_steps:
            self.profiler.stop()


@dataclass(frozen=True)
class Total:
    """All ranges of a name, or all launches of a kernel."""

    name: str
    calls: int
    ms: float


@dataclass(frozen=True)
class Recording:
    """What was recorded, summed up: ranges on the host, kernels on the GPU, longest first."""

    num_steps: int
    ranges: list[Total]
    kernels: list[Total]


def record(
    engine: "LLMEngine",
    model: object,
    run: Callable[[], object],
    path: Path,
    *,
    skip: int,
    num_steps: int,
) -> Recording:
    """Runs, and writes a Chrome trace (gzip if the name ends in .gz) of some of the steps.

    Raises ConfigError if the run has no step left after `skip`.
    """
    recorder = StepRecorder(skip, num_steps)
    engine.on_step = recorder.on_step
    try:
        with ranges(engine, model):
            run()
    finally:
        engine.on_step = None
        recorder.finish()
    if not recorder.num_recorded:
        raise ConfigError(
            f"skip={skip} leaves nothing to record of a run of {recorder.seen} steps; skip fewer"
        )
    recorder.profiler.export_chrome_trace(str(path))
    averages = recorder.profiler.key_averages()
    return Recording(
        num_steps=recorder.num_recorded,
        ranges=_longest_first(
            Total(event.key, event.count, event.cpu_time_total / 1e3)
            for event in averages
            if event.key in ("step", *PHASES) or event.key.startswith("layer ")
        ),
        kernels=_longest_first(
            Total(event.key, event.count, event.self_device_time_total / 1e3)
            for event in averages
            if event.device_type.name == "CUDA" and not event.is_user_annotation
        ),
    )


def _longest_first(totals: Iterable[Total]) -> list[Total]:
    return sorted((t for t in totals if t.ms), key=lambda total: -total.ms)
