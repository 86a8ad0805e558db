"""`pagetwin profile`: where the time of a model's steps goes, as a trace for Perfetto."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pagetwin.commands import knobs
from pagetwin.commands.writing import written
from pagetwin.engine.errors import ConfigError

if TYPE_CHECKING:
    from pagetwin.conformance.bench.trace import Recording

MAX_KERNELS = 15


def profile(
    *,
    model: Annotated[
        str, typer.Option(metavar="NAME_OR_PATH", help="A name, a folder or a .gguf file.")
    ],
    workload: Annotated[
        str, typer.Option(metavar="NAME", help="One of those of `bench offline`.")
    ] = "single",
    scale: knobs.Scale = 1.0,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The trace; a name in .gz is compressed.")
    ] = Path("trace.json"),
    skip: Annotated[int, typer.Option(metavar="N", help="Steps before the trace begins.")] = 0,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps in the trace.")] = 16,
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Keep CUDA graphs: true gaps, but no layers in them.")
    ] = False,
    load_format: knobs.LoadFormat = None,
    dtype: knobs.DType = None,
    max_model_len: knobs.MaxModelLen = None,
    max_num_seqs: knobs.MaxNumSeqs = None,
    max_num_batched_tokens: knobs.MaxNumBatchedTokens = None,
    gpu_memory_utilization: knobs.GpuMemoryUtilization = None,
    attention_backend: knobs.AttentionBackend = None,
    async_scheduling: knobs.AsyncScheduling = None,
    wait_for_prefix: knobs.WaitForPrefix = None,
    batch_invariant: knobs.BatchInvariant = None,
) -> None:
    """Record some steps of a workload: a range per phase and layer, and each GPU kernel.

    Open the trace at https://ui.perfetto.dev.
    """
    engine_knobs = knobs.given(
        enforce_eager=not graphs,
        load_format=load_format,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        gpu_memory_utilization=gpu_memory_utilization,
        attention_backend=attention_backend,
        async_scheduling=async_scheduling,
        wait_for_prefix=wait_for_prefix,
        batch_invariant=batch_invariant,
    )
    if skip < 0 or steps < 1:
        raise ConfigError(f"--skip {skip} --steps {steps}: skip 0 or more, record 1 or more")
    import os
    import time

    # Torch's profiler says on standard error that it starts and stops; it asks at its import.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    from pagetwin.commands.progress import terminal_progress
    from pagetwin.conformance.bench.offline import (
        OfflineOptions,
        drawn_workloads,
        start,
        warm_up_workload,
    )

    options = OfflineOptions(
        models=(model,),
        workloads=(workload,),
        shrink_by=knobs.shrink_factor(scale),
        knobs=engine_knobs,
    )
    with written(out) as path, terminal_progress() as progress:
        progress.begin("start", None)
        started = start(model, options.knobs, started_s=time.perf_counter())
        from pagetwin.conformance.bench.passes import generate, run_pass
        from pagetwin.conformance.bench.trace import record

        llm = started.llm
        [work] = drawn_workloads(options, llm).values()
        progress.begin("warm up", None)
        run_pass(llm, warm_up_workload(llm))
        llm.engine.reset_prefix_cache()
        progress.begin(workload, None)
        recording = record(
            llm.engine,
            started.loaded.model,
            lambda: generate(llm, work),
            path,
            skip=skip,
            num_steps=steps,
        )
    _print(recording)
    print(f"\n{recording.num_steps} steps in {out}; open it at https://ui.perfetto.dev")


def _print(recording: "Recording") -> None:
    from pagetwin.conformance.bench.trace import Total
    from pagetwin.reports.tables import Table, number

    def show(title: str, totals: list[Total]) -> None:
        rows = [[t.name, str(t.calls), number(t.ms), number(t.ms / t.calls * 1e3)] for t in totals]
        print(Table([title, "calls", "ms", "us each"], rows).text())

    show("on the host", [total for total in recording.ranges if "layer" not in total.name])
    if recording.kernels:
        print()
        show("on the GPU", recording.kernels[:MAX_KERNELS])
