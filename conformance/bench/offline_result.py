"""What `pagetwin bench offline` found, as plain data: raw samples, and all they depend on."""

from typing import Any

import msgspec

from pagetwin.conformance.bench.work import ModelSizes, Work
from pagetwin.conformance.environment import Commit

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


class OfflineReport(msgspec.Struct, frozen=True, kw_only=True):
    """One invocation: one machine, one commit."""

    schema: str = SCHEMA
    version: str
    commit: Commit | None
    sources_sha256: str
    device: str
    machine: dict[str, str]
    versions: dict[str, str]
    seed: int
    recorded: bool = False
    """Whether a history was written meanwhile, which costs time on the host."""
    models: dict[str, ModelRun]
    rows: tuple[OfflineRow, ...]


def rates(workload_tokens: tuple[int, int], seconds: float) -> tuple[float, float]:
    """(output, total) tokens per second, of (prompt, output) tokens."""
    prompt, output = workload_tokens
    return output / seconds, (prompt + output) / seconds
