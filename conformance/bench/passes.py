"""One run of a workload on an engine, checked and timed."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pagetwin.conformance.bench.calibration_runs import ProbeRun
from pagetwin.conformance.bench.latencies import Latencies
from pagetwin.conformance.bench.offline_result import OpenLoop, Pass
from pagetwin.conformance.bench.workloads import Workload
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pagetwin.engine.core import CompletedStep
    from pagetwin.engine.llm import LLM
    from pagetwin.engine.llm_engine import LLMEngine

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
    params = [_params(request.num_output_tokens) for request in workload]
    return llm.generate([request.prompt_token_ids for request in workload], params)


def serve(
    engine: "LLMEngine",
    workload: Workload,
    arrivals_s: Sequence[float] | None,
    label: str,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[RequestOutput]:
    """Like `generate`, but requests are handed in at their times; the outputs in their order.

    `arrivals_s` are seconds from now, ascending; None for all at once, before the first step.
    Requests that have come are handed in between steps, with the time at which they were due as
    their arrival. Their ids are `label`, a slash and a number.
    """
    started = clock()
    due = [started + at for at in arrivals_s or [0.0] * len(workload)]
    ids = [f"{label}/{number:06d}" for number in range(len(workload))]
    done: dict[str, RequestOutput] = {}
    submitted = 0
    while len(done) < len(workload):
        while submitted < len(workload) and (arrivals_s is None or due[submitted] <= clock()):
            request = workload[submitted]
            engine.add_request(
                ids[submitted],
                request.prompt_token_ids,
                _params(request.num_output_tokens),
                arrival_s=due[submitted],
            )
            submitted += 1
        if engine.has_unfinished_requests():
            done.update((out.request_id, out) for out in engine.step() if out.finished)
        else:
            sleep(max(0.0, due[submitted] - clock()))
    return [done[request_id] for request_id in ids]


def _params(num_output_tokens: int) -> SamplingParams:
    return SamplingParams(
        temperature=0.0,
        ignore_eos=True,
        max_tokens=num_output_tokens,
        output_kind="final_only",
    )


def run_pass(llm: "LLM", workload: Workload, label: str | None = None) -> Pass:
    """Empties the prefix cache, then times the workload from submission to the last output.

    With a label, request ids carry it (see `serve`), for whoever reads the history.
    """
    if label is None:
        return _timed(llm, workload, lambda: generate(llm, workload))
    return _timed(llm, workload, lambda: serve(llm.engine, workload, None, label))


def run_open_loop(
    llm: "LLM", workload: Workload, arrivals_s: Sequence[float], label: str
) -> OpenLoop:
    """Empties the prefix cache, then serves requests as they arrive; what they saw."""
    latencies = Latencies()
    run = _timed(
        llm,
        workload,
        lambda: serve(llm.engine, workload, arrivals_s, label),
        also=latencies.add,
    )
    return OpenLoop(
        run=run,
        requests_per_s=len(workload) / run.seconds,
        latency_ms=latencies.percentiles_ms(),
    )


def run_probe(llm: "LLM", probe: ProbeRun) -> None:
    """Empties the prefix cache, then serves a calibration run, for the history to tell of it."""
    _timed(
        llm,
        probe.workload,
        lambda: serve(llm.engine, probe.workload, probe.arrivals_s, probe.label),
    )


def _timed(
    llm: "LLM",
    workload: Workload,
    run: Callable[[], list[RequestOutput]],
    also: Callable[["CompletedStep"], None] | None = None,
) -> Pass:
    engine, scheduler = llm.engine, llm.engine.core.scheduler
    emptied = engine.reset_prefix_cache()
    assert emptied, "nothing runs between passes"
    tally, before = StepTally(), scheduler.counters()

    def on_step(completed: "CompletedStep") -> None:
        tally.add(completed)
        if also is not None:
            also(completed)

    engine.on_step = on_step
    try:
        started = time.perf_counter()
        outputs = run()
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
