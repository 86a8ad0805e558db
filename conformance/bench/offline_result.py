"""What `pagetwin bench offline` found, as plain data: raw samples, and all they depend on."""

from collections.abc import Sequence
from typing import Any, Self

import msgspec

from pagetwin.conformance.bench.work import ModelSizes, Work
from pagetwin.conformance.bench.workloads import Workload, digest
from pagetwin.conformance.environment import Measured

SCHEMA = "pagetwin.bench.offline/1"


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a workload."""

    seconds: float
    steps: int
    graph_steps: int = 0
    """Steps that a CUDA graph ran."""
    eager_reasons: dict[str, int] = {}
    """Why the others were not, where there are graphs, with the number of steps."""
    preemptions: int = 0
    prefix_queries: int = 0
    """Tokens that were looked up in the prefix cache."""
    prefix_hit_tokens: int = 0
    step_ms: dict[str, float] = {}
    """Means over the steps of what StepTimings holds, and of the whole step as `wall`."""


class OpenLoop(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a workload whose requests arrive by themselves."""

    run: Pass
    requests_per_s: float
    """Served, from the start to the last output."""
    latency_ms: dict[str, float]
    """Percentiles 50, 95 and 99 over the requests, from when each was due: `ttft_p50` and so on;
    `tpot` is the time of an output token after the first, `e2e` that to the last."""


class OnlineRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a workload in an open loop."""

    key: str
    """device/model/workload/arrivals."""
    model: str
    workload: str
    arrivals: str
    offered_per_s: float
    """Requests a second that arrive."""
    num_requests: int
    workload_sha256: str
    shrunk_by: int = 1
    passes: tuple[OpenLoop, ...]


class OfflineRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a workload. The rates are those of the fastest pass."""

    key: str
    """device/model/workload."""
    model: str
    workload: str
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Prompt and output together."""
    seconds: tuple[float, ...]
    """Of each pass, in order."""
    passes: tuple[Pass, ...]
    workload_sha256: str
    shrunk_by: int = 1
    """Above 1 the workload is only a sample of the real one, and compares with nothing."""
    work: Work

    @classmethod
    def of(
        cls,
        passes: Sequence[Pass],
        workload: Workload,
        work: Work,
        *,
        device: str,
        model: str,
        name: str,
        shrunk_by: int,
    ) -> Self:
        """The row of a workload's passes."""
        seconds = tuple(one.seconds for one in passes)
        prompt_tokens = sum(len(request.prompt_token_ids) for request in workload)
        output_tokens = sum(request.num_output_tokens for request in workload)
        return cls(
            key=f"{device}/{model}/{name}",
            model=model,
            workload=name,
            num_requests=len(workload),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            output_tokens_per_s=output_tokens / min(seconds),
            total_tokens_per_s=(prompt_tokens + output_tokens) / min(seconds),
            seconds=seconds,
            passes=tuple(passes),
            workload_sha256=digest(workload),
            shrunk_by=shrunk_by,
            work=work,
        )

    @property
    def best(self) -> Pass:
        return min(self.passes, key=lambda one: one.seconds)


class ModelRun(msgspec.Struct, frozen=True, kw_only=True):
    """How a model was started."""

    config: dict[str, Any]
    """The whole EngineConfig; the model by its name alone."""
    startup_s: dict[str, float]
    """Seconds from nothing imported to ready, by phase, in order."""
    sizes: ModelSizes


class OfflineReport(Measured, frozen=True, kw_only=True):
    """One invocation: one machine, one commit."""

    schema: str = SCHEMA
    device: str
    seed: int
    recorded: bool = False
    """Whether a history was written meanwhile, which costs time on the host."""
    models: dict[str, ModelRun]
    rows: tuple[OfflineRow, ...]
    online: tuple[OnlineRow, ...] = ()
    """Where requests were to arrive by themselves, too."""
