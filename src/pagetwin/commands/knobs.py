"""Options that commands share: of an engine, left to it where not given, and of its work."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pagetwin.engine.errors import ConfigError

Scale = Annotated[
    float, typer.Option(metavar="F", help="Below 1: that share of the work, as a smoke test.")
]
LoadFormat = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help="auto, safetensors, bin, gguf; dummy for random weights."),
]
# Named, because typer 0.27 takes a metavar that is the name in capitals for the name.
DType = Annotated[
    str | None, typer.Option("--dtype", metavar="DTYPE", help="auto, float32, float16 or bfloat16.")
]
MaxModelLen = Annotated[int | None, typer.Option(metavar="N", help="Longest sequence, in tokens.")]
MaxNumSeqs = Annotated[int | None, typer.Option(metavar="N", help="Running sequences at once.")]
MaxNumBatchedTokens = Annotated[int | None, typer.Option(metavar="N", help="Tokens of one step.")]
GpuMemoryUtilization = Annotated[
    float | None, typer.Option(metavar="X", help="Share of the GPU's memory to use, 0 to 1.")
]
AttentionBackend = Annotated[
    str | None, typer.Option(metavar="NAME", help="auto, or a backend's name.")
]
EnforceEager = Annotated[bool | None, typer.Option("--enforce-eager", help="No CUDA graphs.")]
AsyncScheduling = Annotated[
    bool | None,
    typer.Option(
        "--async-scheduling/--no-async-scheduling",
        help="Plan a step while the one before is in flight.",
    ),
]
WaitForPrefix = Annotated[
    bool | None,
    typer.Option(
        "--wait-for-prefix/--no-wait-for-prefix",
        help="Have a request wait while another computes the next block that both begin with.",
    ),
]
BatchInvariant = Annotated[
    bool | None,
    typer.Option(
        "--batch-invariant/--no-batch-invariant",
        help="Bits of logits that do not depend on the batch.",
    ),
]
WorkloadSpec = Annotated[
    str | None, typer.Option(metavar="SPEC", help="KIND:key=value,...; see docs/simulating.md.")
]
TraceFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A trace or a history, instead.")
]
SimulatedModel = Annotated[
    str, typer.Option(metavar="NAME_OR_PATH", help="A known name, or a config.json.")
]
ProfileFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Calibrated costs, or `none` for a roofline. Default: the ones that come with "
        "pagetwin for the model on that GPU, if they do.",
    ),
]
UNCALIBRATED = Path("none")
"""In place of a profile: the roofline, whatever was measured."""
Trim = Annotated[bool, typer.Option("--trim", help="Cut requests that are too long for the model.")]


def given(**knobs: Any) -> dict[str, Any]:
    """The knobs that have a value."""
    return {name: value for name, value in knobs.items() if value is not None}


def shrink_factor(scale: float) -> int:
    """By how much --scale divides the work. Raises ConfigError."""
    if not 0 < scale <= 1:
        raise ConfigError(f"--scale {scale} is outside 0..1; use 1 for the whole workloads")
    return round(1 / scale)
