"""One run of a workload on an engine, checked and timed."""

import time
from collections import Counter
from typing import TYPE_CHECKING

from pagetwin.conformance.bench.offline_result import Pass
from pagetwin.conformance.bench.workloads import Workload
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pagetwin.engine.core import CompletedStep
    from pagetwin.engine.llm import LLM

_PHASES = ("prepare", "execute", "sample", "device")


class StepTally:
    """Sums up what the steps of a run say of themselves."""

    def __init__(self) -> None:
        self.steps = self.graph_steps = 0
        self.eager_reasons: Counter[str] = Counter()
        self._seconds = dict.fromkeys(_PHASES, 0.0)

    def add(self, completed: "CompletedStep") -> None:
        timings = completed.result.timings
        self.steps += 1
        self.graph_steps += timings.graph_size > 0
        if timings.eager_reason:
            self.eager_reasons[timings.eager_reason] += 1
        for phase in _PHASES:
            self._seconds[phase] += getattr(timings, f"{phase}_s")

    def mean_ms(self) -> dict[str, float]:
        """Mean milliseconds a step, of the phases that took any time."""
        return {
            phase: seconds / self.steps * 1e3 for phase, seconds in self._seconds.items() if seconds
        }


def generate(llm: "LLM", workload: Workload) -> list[RequestOutput]:
    """Greedy; no end of sequence ends a request early."""
    params = [
        SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=request.num_output_tokens)
        for request in workload
    ]
    return llm.generate([request.prompt_token_ids for request in workload], params)


def run_pass(llm: "LLM", workload: Workload) -> Pass:
    """Empties the prefix cache, then times the workload from submission to the last output."""
    engine, scheduler = llm.engine, llm.engine.core.scheduler
    emptied = engine.reset_prefix_cache()
    assert emptied, "nothing runs between passes"
    tally, before = StepTally(), scheduler.counters()
    engine.on_step = tally.add
    try:
        started = time.perf_counter()
        outputs = generate(llm, workload)
        seconds = time.perf_counter() - started
    finally:
        engine.on_step = None
    after = scheduler.counters()
    for request, output in zip(workload, outputs, strict=True):
        written = len(output.outputs[0].token_ids)
        assert written == request.num_output_tokens, (
            f"{output.request_id} got {written} tokens, asked for {request.num_output_tokens}"
        )
    return Pass(
        seconds=seconds,
        steps=tally.steps,
        graph_steps=tally.graph_steps,
        eager_reasons=dict(tally.eager_reasons),
        preemptions=after.preemptions_recompute
        + after.preemptions_swap
        - before.preemptions_recompute
        - before.preemptions_swap,
        prefix_queries=after.prefix_queries - before.prefix_queries,
        prefix_hit_tokens=after.prefix_hit_tokens - before.prefix_hit_tokens,
        step_ms=tally.mean_ms() | {"wall": seconds / tally.steps * 1e3},
    )
