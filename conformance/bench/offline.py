"""Runs the fixed workloads on a model, offline, and times them as other engines were timed.

Greedy, end of sequence ignored, so that each request gets exactly the tokens it asks for. After a
short warm-up each workload runs as often as asked: all requests are handed in at once, with an
empty prefix cache, and the last output ends the clock. Then, if asked, once more with requests that
arrive by themselves. `measure` times the imports too, so nothing heavy is imported before it runs.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from pagetwin.conformance.bench.arrivals import Arrivals
from pagetwin.conformance.bench.calibration_runs import longest_request, probe_runs
from pagetwin.conformance.bench.offline_result import (
    ModelRun,
    OfflineReport,
    OfflineRow,
    OnlineRow,
)
from pagetwin.conformance.bench.probes import Stopwatch, around
from pagetwin.conformance.bench.work import Work, least_work, model_sizes
from pagetwin.conformance.bench.workloads import (
    VOCABULARY,
    WORKLOADS,
    Workload,
    shrunk,
    single,
)
from pagetwin.conformance.environment import gpu, provenance, sources_sha256, versions
from pagetwin.engine.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from pagetwin.engine.llm import LLM
    from pagetwin.engine.models.loader import LoadedModel
    from pagetwin.engine.trace import HistoryWriter, Origin

MAX_MODEL_LEN = 16384
"""Where no knob gives it and the model allows it: what other engines were given."""


class Progress(Protocol):
    """Told what is going on."""

    def begin(self, phase: str, total: int | None) -> None: ...

    def advance_to(self, done: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class OfflineOptions:
    """What to run. `knobs` are the ones of LLM that were given. Raises ConfigError."""

    models: tuple[str, ...]
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    arrivals: tuple[Arrivals, ...] = ()
    """Each workload also runs with these, after its passes with all requests at once."""
    probe: bool = False
    """Whether to run the calibration runs, too, before the workloads."""
    repeats: int = 2
    shrink_by: int = 1
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [model_name(model) for model in self.models]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"two of the models are called the same ({', '.join(names)}) and results are kept "
                "by name; measure them one after the other"
            )
        for name in self.workloads:
            if name not in WORKLOADS:
                known = ", ".join(WORKLOADS)
                raise ConfigError(f"workload {name!r} is unknown; use all, or some of {known}")
        if self.repeats < 1:
            raise ConfigError(f"repeats={self.repeats} is below 1; run each workload at least once")


@dataclass(frozen=True, kw_only=True)
class Started:
    """An engine that is ready, and how long it took."""

    llm: "LLM"
    loaded: "LoadedModel"
    startup_s: dict[str, float]


def model_name(model: str) -> str:
    """What results call a model: the last part of its path."""
    return Path(model).name.removesuffix(".gguf")


def measure(
    options: OfflineOptions, model: str, progress: Progress, record: Path | None = None
) -> OfflineReport:
    """Starts one of the models and runs the workloads; writes their history to `record`.

    A process measures one model, so that imports are timed and memory is free. Raises ConfigError
    if a knob or a workload does not fit the model.
    """
    progress.begin(f"{model_name(model)}: start", None)
    started_s = time.perf_counter()
    from pagetwin.engine.trace import HistoryWriter

    history = HistoryWriter(record) if record is not None else None
    try:
        started = start(model, options.knobs, started_s=started_s, history=history)
        device = gpu().get("gpu", "cpu")
        rows, online = _measure_workloads(options, started, device, model_name(model), progress)
    finally:
        if history is not None:
            history.close()
    config = msgspec.to_builtins(started.llm.engine.config)
    config["model"]["model"] = model_name(model)
    run = ModelRun(config=config, startup_s=started.startup_s, sizes=model_sizes(started.loaded))
    return OfflineReport(
        **provenance(),
        device=device,
        seed=config["model"]["seed"],
        recorded=history is not None,
        models={model_name(model): run},
        rows=rows,
        online=online,
    )


def start(
    model: str,
    knobs: Mapping[str, Any],
    *,
    started_s: float,
    history: "HistoryWriter | None" = None,
) -> Started:
    """Makes the engine, without a tokenizer; `started_s` is when importing began."""
    import torch

    from pagetwin.engine.config import ModelConfig
    from pagetwin.engine.factory import resolve_device
    from pagetwin.engine.llm import LLM, build, engine_from_knobs, sort_knobs
    from pagetwin.engine.models.loader import load_model

    watch = Stopwatch()
    watch.seconds["import"] = time.perf_counter() - started_s
    knobs = {"skip_tokenizer": True, **knobs}
    device = resolve_device(knobs.get("device", "auto"))
    with watch.phase("load"):
        model_knobs = sort_knobs({"model": model, **knobs})[ModelConfig]
        loaded = load_model(build(ModelConfig, model_knobs), device)
        if device.type == "cuda":
            torch.cuda.synchronize()
    if history is not None:
        history.origin = _origin(loaded, device)
    knobs = {"max_model_len": min(MAX_MODEL_LEN, loaded.spec.max_model_len), **knobs}
    with watch.phase("rest"), _watched_phases(watch, device.type):
        engine = engine_from_knobs(model, knobs, loaded=loaded, history=history)
    return Started(llm=LLM.from_engine(engine), loaded=loaded, startup_s=watch.seconds)


def _origin(loaded: "LoadedModel", device: "torch.device") -> "Origin":
    """What the header of a history says of where it was recorded."""
    from pagetwin.engine.trace import Origin

    config = loaded.folder / "config.json"
    return Origin(
        versions=versions() | {"sources": sources_sha256()},
        device=gpu().get("gpu", "cpu") if device.type == "cuda" else "cpu",
        dtype=str(loaded.spec.dtype).removeprefix("torch."),
        model_config=msgspec.json.decode(config.read_bytes()) if config.is_file() else {},
    )


@contextmanager
def _watched_phases(watch: Stopwatch, device_type: str) -> Iterator[None]:
    """Tells what a GPU's engine does while it starts: compiles kernels, measures memory, captures
    graphs."""
    if device_type != "cuda":
        yield
        return
    from pagetwin.engine import factory
    from pagetwin.engine.gpu_runner import GpuRunner

    with (
        around(factory, "measured_kv_bytes", partial(watch.phase, "profile")),
        around(GpuRunner, "warm_up", partial(watch.phase, "capture")),
        around(GpuRunner, "compile", partial(watch.phase, "compile")),
    ):
        yield


def drawn_workloads(options: OfflineOptions, llm: "LLM") -> dict[str, Workload]:
    """The workloads by name. Raises ConfigError if one has a request too long for the engine."""
    workloads = {
        name: shrunk(WORKLOADS[name](_vocabulary(llm)), options.shrink_by)
        for name in options.workloads
    }
    for name, workload in workloads.items():
        _check_length(name, workload, llm.engine.config.scheduler.max_model_len)
    return workloads


def warm_up_workload(llm: "LLM") -> Workload:
    """One short request, for what only the first steps of an engine cost."""
    return single(_vocabulary(llm), num_prompt_tokens=32, num_output_tokens=8)


def _vocabulary(llm: "LLM") -> int:
    return min(VOCABULARY, llm.engine.vocab_size)


def _measure_workloads(
    options: OfflineOptions, started: Started, device: str, model: str, progress: Progress
) -> tuple[tuple[OfflineRow, ...], tuple[OnlineRow, ...]]:
    from pagetwin.conformance.bench.passes import run_pass, run_probe

    llm = started.llm
    workloads = drawn_workloads(options, llm)
    run_pass(llm, warm_up_workload(llm), "warm-up")
    if options.probe:
        runs = probe_runs(
            _vocabulary(llm),
            max_num_seqs=llm.engine.config.scheduler.max_num_seqs,
            longest=longest_request(llm.engine.config),
        )
        progress.begin(f"{model}: calibration runs", len(runs))
        for number, run in enumerate(runs):
            run_probe(llm, run.shrunk(options.shrink_by))
            progress.advance_to(number + 1)
    rows, online = [], []
    for name, workload in workloads.items():
        progress.begin(f"{model}: {name}", options.repeats)
        passes = []
        for repeat in range(options.repeats):
            passes.append(run_pass(llm, workload, f"{name}/at-once/{repeat}"))
            progress.advance_to(repeat + 1)
        row = OfflineRow.of(
            passes,
            workload,
            _work(started, workload),
            device=device,
            model=model,
            name=name,
            shrunk_by=options.shrink_by,
        )
        rows.append(row)
        online += [
            _measure_arrivals(arrivals, options.repeats, llm, workload, row, progress)
            for arrivals in options.arrivals
        ]
    return tuple(rows), tuple(online)


def _measure_arrivals(
    arrivals: Arrivals,
    repeats: int,
    llm: "LLM",
    workload: Workload,
    closed: OfflineRow,
    progress: Progress,
) -> OnlineRow:
    """The workload in an open loop; `closed` tells what it is, and its rate in a closed one."""
    from pagetwin.conformance.bench.passes import run_open_loop

    times = arrivals.times(len(workload), len(workload) / min(closed.seconds))
    label = f"{closed.workload}/{arrivals}"
    progress.begin(f"{closed.model}: {label}", repeats)
    passes = []
    for repeat in range(repeats):
        passes.append(run_open_loop(llm, workload, times, f"{label}/{repeat}"))
        progress.advance_to(repeat + 1)
    return OnlineRow(
        key=f"{closed.key}/{arrivals}",
        model=closed.model,
        workload=closed.workload,
        arrivals=str(arrivals),
        offered_per_s=len(workload) / times[-1],
        num_requests=len(workload),
        workload_sha256=closed.workload_sha256,
        shrunk_by=closed.shrunk_by,
        passes=tuple(passes),
    )


def _work(started: Started, workload: Workload) -> Work:
    config = started.llm.engine.config
    return least_work(
        workload,
        model_sizes(started.loaded),
        sliding_windows=started.loaded.spec.sliding_windows,
        max_num_seqs=config.scheduler.max_num_seqs,
        prefix_caching=config.cache.enable_prefix_caching,
    )


def _check_length(name: str, workload: Workload, max_model_len: int) -> None:
    longest = max(len(request.prompt_token_ids) + request.num_output_tokens for request in workload)
    if longest > max_model_len:
        raise ConfigError(
            f"workload {name!r} has a request of {longest} tokens, above max_model_len="
            f"{max_model_len}; raise that if the model allows it, leave the workload out, or scale "
            "it down"
        )
