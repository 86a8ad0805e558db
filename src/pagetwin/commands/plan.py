"""`pagetwin plan`: the cheapest configuration that meets an objective, found by simulation."""

from pathlib import Path
from typing import Annotated

import typer

from pagetwin.commands import knobs
from pagetwin.commands.writing import as_json_document
from pagetwin.engine.errors import ConfigError


def plan(
    *,
    workload: knobs.WorkloadSpec = None,
    trace: knobs.TraceFile = None,
    model: knobs.SimulatedModel,
    slo: Annotated[str, typer.Option(metavar="TERMS", help="ttft_p95<500ms,tpot_p95<50ms")],
    gpus: Annotated[str, typer.Option(metavar="NAMES", help="h100,h200,...")] = "h100",
    max_gpus: Annotated[int, typer.Option(metavar="N", help="Most GPUs in all.")] = 16,
    tp: Annotated[str, typer.Option(metavar="SIZES", help="GPUs of a replica: 1,2,4.")] = "1,2,4,8",
    kv_dtypes: Annotated[
        str, typer.Option(metavar="DTYPES", help="Of the KV cache: auto,float8.")
    ] = "auto",
    price: Annotated[
        list[str] | None,
        typer.Option(metavar="GPU=USD", help="Of a GPU and hour; else a guess. Several times."),
    ] = None,
    profile: knobs.ProfileFile = None,
    requests: Annotated[
        int | None, typer.Option(metavar="N", help="Of a trace: only the first so many.")
    ] = None,
    max_model_len: knobs.MaxModelLen = None,
    wait_for_prefix: knobs.WaitForPrefix = None,
    dtype: knobs.DType = None,
    confidence: Annotated[
        float, typer.Option(metavar="X", help="That the objective is met.")
    ] = 0.95,
    max_seeds: Annotated[
        int, typer.Option(metavar="N", help="Most runs of a candidate, a seed each.")
    ] = 8,
    trim: knobs.Trim = False,
    processes: Annotated[
        int | None, typer.Option(metavar="N", help="Trials at once; else one a processor.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Trials on a Ray cluster.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For plan.html, plan.json and trials.jsonl."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer as JSON, and only it.")
    ] = False,
) -> int:
    """Find the cheapest GPUs and knobs that meet an objective.

    Tries the fewest replicas of each kind of GPU, then the engine's knobs, by simulating the
    workload until each answer is clear. With --out a run that was stopped goes on where it was.
    Ends with 2 if nothing meets the objective.
    """
    from pagetwin.commands.planning import (
        Planning,
        parse_list,
        parse_prices,
        plan_text,
        workload_spec,
    )

    planning = Planning(
        workload=workload_spec(workload, trace, requests),
        model=model,
        slo=slo,
        gpus=parse_list(gpus),
        tp=tuple(int(size) for size in parse_list(tp, whole="--tp")),
        kv_dtypes=tuple(None if one == "auto" else one for one in parse_list(kv_dtypes)),
        prices=parse_prices(price or []),
        profile=profile,
        max_gpus=max_gpus,
        max_model_len=max_model_len,
        wait_for_prefix=wait_for_prefix,
        dtype=dtype,
        confidence=confidence,
        max_seeds=max_seeds,
        trim=trim,
    )
    answer, shortfall = planning.run(out, processes=processes, on_ray=ray)
    if as_json:
        print(as_json_document(answer).decode(), end="")
    else:
        print(plan_text(answer))
        if out is not None:
            print(f"\nThe page is {out / 'plan.html'}")
    if shortfall:
        raise ConfigError(
            f"nothing within {max_gpus} GPUs meets {slo}: {shortfall}; allow more GPUs, other "
            "kinds, or a looser limit"
        )
    return 0
