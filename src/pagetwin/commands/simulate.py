"""`pagetwin simulate`: a workload on simulated replicas of a model."""

from pathlib import Path
from typing import Annotated

import typer

from pagetwin.commands import knobs
from pagetwin.commands.writing import as_json_document
from pagetwin.engine.errors import ConfigError


def simulate(
    *,
    workload: knobs.WorkloadSpec = None,
    trace: knobs.TraceFile = None,
    model: knobs.SimulatedModel,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="h100, a100, h200, ...")] = "h100",
    replicas: Annotated[int, typer.Option(metavar="N", help="Replicas of the model.")] = 1,
    tp: Annotated[int, typer.Option(metavar="K", help="GPUs of a replica, tensor parallel.")] = 1,
    pp: Annotated[int, typer.Option(metavar="K", help="Stages of a replica, pipelined.")] = 1,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KNOB=VALUE,...",
            help="A pool that differs from the options: gpu=h200,replicas=2. Several times.",
        ),
    ] = None,
    profile: knobs.ProfileFile = None,
    num_blocks: Annotated[
        int | None, typer.Option(metavar="N", help="KV blocks of a replica; else estimated.")
    ] = None,
    block_size: Annotated[int, typer.Option(metavar="N", help="Tokens of a block.")] = 16,
    dtype: knobs.DType = None,
    kv_dtype: Annotated[str | None, typer.Option(metavar="DTYPE", help="Of the KV cache.")] = None,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Reuse equal prefixes.")
    ] = True,
    max_model_len: knobs.MaxModelLen = None,
    max_num_seqs: knobs.MaxNumSeqs = None,
    max_num_batched_tokens: knobs.MaxNumBatchedTokens = None,
    long_prefill_token_threshold: Annotated[
        int | None, typer.Option(metavar="N", help="Most tokens of a prompt in one step.")
    ] = None,
    gpu_memory_utilization: knobs.GpuMemoryUtilization = None,
    async_scheduling: knobs.AsyncScheduling = None,
    wait_for_prefix: knobs.WaitForPrefix = True,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Scheduling: fcfs, priority or your own.")
    ] = None,
    router: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="round_robin, least_outstanding, least_kv, prefix_affinity, session_sticky or "
            "power_of_two.",
        ),
    ] = "least_outstanding",
    max_outstanding: Annotated[
        int | None,
        typer.Option(metavar="N", help="Turn requests away above so many for each replica."),
    ] = None,
    max_ttft: Annotated[
        float | None, typer.Option(metavar="S", help="Or where a later first token is predicted.")
    ] = None,
    mtbf: Annotated[
        float | None, typer.Option(metavar="S", help="Mean time between failures of a replica.")
    ] = None,
    repair: Annotated[float, typer.Option(metavar="S", help="Mean time to repair.")] = 60.0,
    autoscale: Annotated[
        float | None,
        typer.Option(metavar="N", help="Scale to so many requests a replica; --replicas is most."),
    ] = None,
    cold_start: Annotated[
        float, typer.Option(metavar="S", help="Until a started replica serves.")
    ] = 60.0,
    link_gbps: Annotated[
        float, typer.Option(metavar="G", help="Between prefill and decode, in Gbit/s.")
    ] = 400.0,
    price: Annotated[
        float | None, typer.Option(metavar="USD", help="Of a GPU and hour; else a guess.")
    ] = None,
    slo: Annotated[
        str | None, typer.Option(metavar="TERMS", help="ttft_p95<500ms,tpot_p95<50ms")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(metavar="S", help="How many seeds, one run each.")] = 1,
    loads: Annotated[
        str | None,
        typer.Option(metavar="FACTORS", help="Also at these multiples of the load: 0.5,1,1.5."),
    ] = None,
    trim: knobs.Trim = False,
    processes: Annotated[
        int | None, typer.Option(metavar="N", help="Runs at once; else one a processor.")
    ] = None,
    skip_unfit: Annotated[
        bool, typer.Option("--skip-unfit", help="Leave out requests that no replica can serve.")
    ] = False,
    stepping: Annotated[
        bool, typer.Option("--stepping", help="Step through all steps; slower, the same times.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="With --out: the history of every step, as JSON Lines.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="For a page, summary.json, CSV files and a Perfetto trace."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, and only it.")
    ] = False,
) -> None:
    """Simulate a workload on replicas of a model, in virtual time.

    Prints throughput, percentiles of latencies, memory, cost and energy. With --out:
    simulation.html, summary.json, requests.csv, timeline.csv and trace.json (for
    https://ui.perfetto.dev), and with --record the steps of each replica.
    """
    from pagetwin.commands.simulating import (
        Simulation,
        cluster_of,
        deployment_named,
        parse_loads,
        policy_of,
        workload_of,
    )
    from pagetwin.reports.simulation_table import simulation_text
    from pagetwin.simulator.results.slo import parse_slo

    if record and (out is None or seeds > 1):
        raise ConfigError("--record writes histories of one run; give --out DIR, and one seed")
    deployment = deployment_named(
        gpu=gpu,
        replicas=replicas,
        tp=tp,
        pp=pp,
        dtype=dtype,
        kv_dtype=kv_dtype,
        gpu_memory_utilization=gpu_memory_utilization,
        num_blocks=num_blocks,
        block_size=block_size,
        prefix_caching=prefix_caching,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        long_prefill_token_threshold=long_prefill_token_threshold,
        policy=policy,
        async_scheduling=async_scheduling,
        wait_for_prefix=wait_for_prefix,
        price=price,
    )
    cluster = cluster_of(
        model,
        deployment,
        pool or [],
        mtbf=mtbf,
        repair=repair,
        link_gbps=link_gbps,
        profile=profile,
    )
    simulation = Simulation(
        workload=workload_of(workload, trace, cluster, trim=trim),
        workload_name=workload or f"trace {trace}",
        cluster=cluster,
        policy=policy_of(
            cluster,
            router=router,
            max_outstanding=max_outstanding,
            max_ttft=max_ttft,
            autoscale=autoscale,
            cold_start=cold_start,
        ),
        settings={"model": model, "deployment": deployment, "pools": pool or []},
        slo=None if slo is None else parse_slo(slo),
        seed=seed,
        num_seeds=seeds,
        fast_forward=not stepping,
        skip_unfit=skip_unfit,
        loads=parse_loads(loads),
        num_processes=processes,
    )
    report = simulation.run(out, record=record)
    if as_json:
        print(as_json_document(report).decode(), end="")
    else:
        print(simulation_text(report))
        if out is not None:
            print(
                f"\nThe page is {out / 'simulation.html'}; trace.json beside it opens at "
                "https://ui.perfetto.dev"
            )
