"""`pagetwin bench`: how fast whole engines and kernels are, as tables and as JSON."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pagetwin.commands import bench_results, knobs
from pagetwin.commands.writing import as_json_document, written_if_named
from pagetwin.engine.errors import ConfigError

if TYPE_CHECKING:
    from pagetwin.conformance.bench.offline import OfflineOptions
    from pagetwin.conformance.bench.offline_result import OfflineReport

bench = typer.Typer(help="Measure whole engines and kernels on fixed work.")
for command in (
    bench_results.tables,
    bench_results.combine,
    bench_results.stamp,
    bench_results.peers,
    bench_results.compact,
):
    bench.command()(command)

Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Where the JSON goes.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the JSON, and only it, on standard output.")
]


@bench.callback(invoke_without_command=True)
def without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@bench.command()
def offline(
    *,
    model: Annotated[
        list[str], typer.Option(metavar="NAME_OR_PATH", help="May be given several times.")
    ],
    workload: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="uniform, chat, single, shared_prefix, long_prefill or all; several times.",
        ),
    ] = ["all"],  # noqa: B006 (read, never written)
    arrival: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOW",
            help="Run each workload in an open loop, too: poisson:RATE in requests a second, or "
            "poisson:N% of the rate when all are handed in at once; several times.",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="With --record: first record small runs that hold steps of every kind and size, "
            "for `calibrate`; about 20 s.",
        ),
    ] = False,
    repeats: Annotated[int, typer.Option(metavar="N", help="Runs of each workload.")] = 2,
    scale: knobs.Scale = 1.0,
    out: Out = None,
    as_json: AsJson = False,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the history of all steps goes (JSON Lines)."),
    ] = None,
    load_format: knobs.LoadFormat = None,
    dtype: knobs.DType = None,
    max_model_len: knobs.MaxModelLen = None,
    max_num_seqs: knobs.MaxNumSeqs = None,
    max_num_batched_tokens: knobs.MaxNumBatchedTokens = None,
    gpu_memory_utilization: knobs.GpuMemoryUtilization = None,
    attention_backend: knobs.AttentionBackend = None,
    enforce_eager: knobs.EnforceEager = None,
    async_scheduling: knobs.AsyncScheduling = None,
    wait_for_prefix: knobs.WaitForPrefix = None,
    batch_invariant: knobs.BatchInvariant = None,
) -> None:
    """Time fixed workloads on a model: greedy, all requests at once, none ends early.

    Prints a row per model and workload. The workloads, and so the rows, are those that other
    engines were measured on.
    """
    from pagetwin.conformance.bench.arrivals import Arrivals
    from pagetwin.conformance.bench.combining import combined
    from pagetwin.conformance.bench.offline import OfflineOptions

    if record is not None and len(model) > 1:
        raise ConfigError("--record is for one model; measure the models one after the other")
    if probe and record is None:
        raise ConfigError("--probe only adds to a recording; give --record FILE, too")
    options = OfflineOptions(
        models=tuple(model),
        workloads=_workloads(workload),
        arrivals=tuple(Arrivals.parse(text) for text in arrival or ()),
        probe=probe,
        repeats=repeats,
        shrink_by=knobs.shrink_factor(scale),
        knobs=knobs.given(
            load_format=load_format,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            attention_backend=attention_backend,
            enforce_eager=enforce_eager,
            async_scheduling=async_scheduling,
            wait_for_prefix=wait_for_prefix,
            batch_invariant=batch_invariant,
        ),
    )
    with written_if_named(record) as history, written_if_named(out) as result:
        report = combined([_measure(options, one, history) for one in options.models])
        document = as_json_document(report)
        if result is not None:
            result.write_bytes(document)
    if as_json:
        print(document.decode(), end="")
    else:
        _print_offline(report)


@bench.command()
def kernels(
    *,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A kernel; may be given several times. Default: all."),
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Time the kernels on fixed shapes, on a GPU.

    Exits with 1 if a kernel did not run.
    """
    from pagetwin.commands.progress import terminal_progress
    from pagetwin.conformance.bench.timing import require_gpu

    require_gpu()
    import torch

    from pagetwin.conformance.bench.kernels import all_cases, chosen, measure_kernels
    from pagetwin.conformance.bench.shapes import Shapes
    from pagetwin.conformance.bench.timing import Timers, time_alone, time_in_graph
    from pagetwin.reports.kernel_table import ceilings_line, failures, kernel_table
    from pagetwin.reports.peers import load_peers

    cases = chosen(all_cases(Shapes()), only or [])
    timers = Timers(in_graph=time_in_graph, alone=time_alone)
    with written_if_named(out) as result, terminal_progress() as progress:
        report = measure_kernels(cases, timers, torch.device("cuda"), progress)
        document = as_json_document(report)
        if result is not None:
            result.write_bytes(document)
    if as_json:
        print(document.decode(), end="")
    else:
        print(f"{report.device}; {ceilings_line(report.ceilings)}\n")
        print(kernel_table(report, load_peers()).text())
    problems = failures(report)
    if problems:
        print("\n".join(problems), file=sys.stderr)
        raise typer.Exit(1)


@bench.command()
def simulator(
    *,
    requests: Annotated[
        int, typer.Option(metavar="N", help="Requests that both modes simulate.")
    ] = 20_000,
    long: Annotated[
        int,
        typer.Option(metavar="N", help="Requests of a longer run, for its memory; 0: none."),
    ] = 1_000_000,
    repeats: Annotated[int, typer.Option(metavar="N", help="Runs of each mode.")] = 3,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Time the simulator on one replica, jumping and stepping; both must find the same.

    512 prompt and 128 output tokens, Poisson arrivals at 8 a second: the job that other
    simulators were measured on.
    """
    from pagetwin.conformance.bench.simulation import measure
    from pagetwin.reports.simulator_table import load_simulator_peers, simulator_table

    with written_if_named(out) as result:
        report = measure(
            num_requests=requests,
            num_requests_long=long,
            repeats=repeats,
            progress=lambda what: print(what, file=sys.stderr, flush=True),
        )
        document = as_json_document(report)
        if result is not None:
            result.write_bytes(document)
    if as_json:
        print(document.decode(), end="")
    else:
        print(f"{report.machine['processor']}; {report.workload}\n")
        print(simulator_table(report, load_simulator_peers()).text())


@bench.command()
def elsewhere(
    requests: Annotated[
        Path,
        typer.Argument(
            metavar="REQUESTS",
            help="JSON Lines: request_id, input_toks, output_toks, queued_ts, first_token_ts, "
            "last_token_ts.",
        ),
    ],
    *,
    model: Annotated[str, typer.Option(metavar="NAME", help="A known name, or a config.json.")],
    gpu: Annotated[str, typer.Option(metavar="NAME", help="One with a datasheet here.")],
    name: Annotated[str, typer.Option(metavar="TEXT", help="What to call the run.")],
    engine: Annotated[str, typer.Option(metavar="TEXT", help="What was measured.")] = "vLLM",
    tp: Annotated[int, typer.Option(metavar="N", help="GPUs that share each matrix.")] = 1,
    max_num_seqs: Annotated[int, typer.Option(metavar="N", help="Of the measured engine.")] = 256,
    max_num_batched_tokens: Annotated[
        int, typer.Option(metavar="N", help="Of the measured engine.")
    ] = 2048,
    num_blocks: Annotated[
        int | None,
        typer.Option(metavar="N", help="As it recorded. Default: estimated from the GPU's memory."),
    ] = None,
    out: Out = None,
) -> None:
    """Run another engine's measured requests on the twin, with uncalibrated times."""
    from pagetwin.conformance.fidelity.other_engines import Elsewhere, judge_elsewhere
    from pagetwin.reports.fidelity_table import elsewhere_table

    setup = Elsewhere(
        name=name,
        engine=engine,
        model=model,
        gpu=gpu,
        tensor_parallel=tp,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        num_blocks=num_blocks,
    )
    with written_if_named(out) as place:
        result = judge_elsewhere(requests, setup)
        if place is not None:
            place.write_bytes(as_json_document(result))
    print(f"{result.costs}\n")
    print(elsewhere_table([result]).text())


def _measure(options: "OfflineOptions", model: str, record: Path | None) -> "OfflineReport":
    """Here where there is one model; else each in a process of its own, which starts empty."""
    if len(options.models) == 1:
        return _measure_here(options, model, record)
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(_measure_here, options, model, record).result()


def _measure_here(options: "OfflineOptions", model: str, record: Path | None) -> "OfflineReport":
    from pagetwin.commands.progress import terminal_progress
    from pagetwin.conformance.bench.offline import measure

    with terminal_progress() as progress:
        return measure(options, model, progress, record)


def _workloads(names: list[str]) -> tuple[str, ...]:
    from pagetwin.conformance.bench.workloads import WORKLOADS

    return tuple(WORKLOADS) if "all" in names else tuple(dict.fromkeys(names))


def _print_offline(report: "OfflineReport") -> None:
    from pagetwin.reports.offline_table import offline_table, online_table, startup_table
    from pagetwin.reports.peers import load_peers

    peers = load_peers()
    repeats = len(report.rows[0].passes)
    print(f"{report.device}; of {repeats} passes each, the fastest\n")
    print(offline_table(report, peers).text())
    if report.online:
        print("\nopen loop, latencies in milliseconds (of the first pass)\n")
        print(online_table(report).text())
    print("\nstart-up, in seconds\n")
    print(startup_table(report, peers).text())
