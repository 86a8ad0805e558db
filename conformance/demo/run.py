"""The demo from a trace to a verdict: engine, twin, checkers and oracle, in this order."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from pagetwin.conformance.checkers.all import JUDGED, check_all
from pagetwin.conformance.comparison import LockstepReport
from pagetwin.conformance.demo.account import (
    full_block_hits,
    is_greedy,
    last_counters,
    request_rows,
    step_points,
    step_seconds,
)
from pagetwin.conformance.demo.block_map import block_spans, pool_states
from pagetwin.conformance.demo.drive import drive
from pagetwin.conformance.demo.findings import twin_findings, violation_differences
from pagetwin.conformance.demo.options import DemoOptions
from pagetwin.conformance.demo.parity import GreedyAnswer, ParityFindings, judge_tokens
from pagetwin.conformance.demo.prompts import PromptWriter
from pagetwin.conformance.demo.result import DemoResult, Summary, concluded
from pagetwin.conformance.demo.workload import (
    CACHE,
    SCHEDULER,
    DemoRequest,
    draw_workload,
    trace_window,
)
from pagetwin.conformance.environment import machine, versions
from pagetwin.conformance.history import steps as steps_of
from pagetwin.conformance.lockstep import replay_history
from pagetwin.conformance.properties import Violation
from pagetwin.engine.config import EngineConfig, ModelConfig
from pagetwin.engine.factory import resolve_device
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.models.loader import load_model
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.tokenizer import Tokenizer
from pagetwin.engine.trace import HistoryWriter, Record
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.workloads.trace_files import read_trace, synthetic_trace_path


class Progress(Protocol):
    """Is told which part begins, and how far it is."""

    def begin(self, phase: str, total: int | None) -> None: ...

    def advance_to(self, done: int) -> None: ...


class EngineRun(NamedTuple):
    """What the engine did: its history, and what its clients got."""

    workload: Sequence[DemoRequest]
    records: Sequence[Record]
    outputs: dict[str, RequestOutput]


class Judgement(NamedTuple):
    """What the twin, the checkers and the oracle say of it."""

    lockstep: LockstepReport
    violations: Sequence[Violation]
    parity: ParityFindings


class _Phases:
    """Times the parts of the demo and passes them on to the progress display."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()
        self._progress = progress
        self._name = ""
        self._since = self.started

    def begin(self, name: str, total: int | None = None) -> None:
        self.end()
        self._name = name
        self._progress.begin(name, total)

    def end(self) -> None:
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = now - self._since
        self._name, self._since = "", now


def run_demo(options: DemoOptions, history: Path, progress: Progress) -> DemoResult:
    """Runs everything; the engine's history goes to the file `history`.

    Raises TraceError, ModelError or ConfigError for what the options name. Disagreement is no
    error here: it is in the result.
    """
    phases = _Phases(progress)
    phases.begin("Read the trace")
    entries = list(read_trace(options.trace or synthetic_trace_path()))
    window = trace_window(entries, num_requests=options.num_requests, seed=options.seed)
    phases.begin("Load the model")
    model = ModelConfig(model=options.model, dtype="float32")
    config = EngineConfig(cache=CACHE, scheduler=SCHEDULER, model=model, device="cpu")
    loaded = load_model(model, resolve_device(config.device))
    with HistoryWriter(history, keep=True, with_block_tables=True) as writer:
        engine = LLMEngine.from_config(config, loaded=loaded, history=writer)
        tokenizer = _tokenizer(engine)
        phases.begin("Run the engine", options.num_requests)
        workload = draw_workload(window, PromptWriter(tokenizer), seed=options.seed)
        outputs = drive(engine, workload, progress.advance_to)
    run = EngineRun(workload, writer.records, outputs)
    phases.begin("Replay on the twin")
    report = replay_history(run.records, Replica(CACHE, SCHEDULER))
    phases.begin("Check the invariants")
    violations = check_all(run.records)
    phases.begin("Ask Hugging Face")
    parity = judge_tokens(loaded.folder, _greedy_answers(run), tokenizer, engine.eos_token_ids)
    phases.end()
    return _result(options, run, Judgement(report, violations, parity), phases.seconds)


def _tokenizer(engine: LLMEngine) -> Tokenizer:
    """The engine has one unless its configuration says otherwise, and the demo's does not."""
    assert engine.tokenizer is not None
    return engine.tokenizer


def _greedy_answers(run: EngineRun) -> list[GreedyAnswer]:
    """What clients got who asked for the most likely tokens, as far as they listened."""
    answers = []
    for client in run.workload:
        request = client.request
        token_ids = run.outputs[request.request_id].outputs[0].token_ids
        patience, params = client.abort_after_tokens, request.sampling_params
        if is_greedy(request) and token_ids:
            answers.append(
                GreedyAnswer(
                    request_id=request.request_id,
                    prompt_token_ids=request.prompt_token_ids,
                    token_ids=token_ids,
                    max_tokens=patience or params.max_tokens or 0,
                    ignore_eos=params.ignore_eos,
                    opening=client.opening,
                )
            )
    return answers


def _result(
    options: DemoOptions, run: EngineRun, judgement: Judgement, phases_s: dict[str, float]
) -> DemoResult:
    steps = steps_of(run.records)
    states = dict(pool_states(run.records))
    twin = twin_findings(judgement.lockstep)
    differences = (
        *twin.differences,
        *violation_differences(judgement.violations),
        *judgement.parity.differences,
    )
    return DemoResult(
        summary=_summary(options, run, judgement, phases_s),
        steps=step_points(steps, states, CACHE.num_blocks),
        spans=block_spans(states.items()),
        checks=twin.checks,
        differences=differences,
        parity=judgement.parity.rows,
        requests=request_rows(run.workload, steps, run.outputs),
        command=options.command,
    )


def _summary(
    options: DemoOptions, run: EngineRun, judgement: Judgement, phases_s: dict[str, float]
) -> Summary:
    lockstep, parity = judgement.lockstep, judgement.parity
    twin = twin_findings(lockstep)
    steps = steps_of(run.records)
    seconds = [step_seconds(step) for step in steps] or [0.0]
    output_tokens = sum(len(step.result.sampled) for step in steps if step.result is not None)
    books = last_counters(run.records)
    counts = Summary(
        agreed=False,
        requests=len(run.workload),
        steps=len(steps),
        decisions_compared=lockstep.decisions_compared,
        decision_differences=twin.decision_differences,
        block_tables_compared=lockstep.block_tables_compared,
        block_table_differences=lockstep.block_table_differences,
        counters_compared=lockstep.counters_compared,
        counter_differences=twin.counter_differences,
        invariants_checked=len(JUDGED),
        invariant_violations=len(judgement.violations),
        tokens_compared=parity.tokens_compared,
        token_mismatches=parity.mismatches,
        near_ties=parity.near_ties,
        near_tie_bound=parity.tau,
        oracle_error=parity.oracle_error,
        smallest_margin=parity.smallest_margin,
        preemptions_recompute=books.preemptions_recompute,
        preemptions_swap=books.preemptions_swap,
        prefix_hit_tokens=books.prefix_hit_tokens,
        full_block_hits=full_block_hits(steps, CACHE.block_size),
        partial_hits=books.partial_hits,
        evictions=books.evictions,
        cow_copies=books.cow_copies,
        aborts=books.aborts,
        prompt_tokens=sum(client.request.num_prompt_tokens for client in run.workload),
        output_tokens=output_tokens,
        output_tokens_per_s=output_tokens / max(sum(seconds), 1e-9),
        step_p50_ms=1000 * statistics.median(seconds),
        step_p95_ms=1000 * sorted(seconds)[int(0.95 * (len(seconds) - 1))],
        wall_s=sum(phases_s.values()),
        phases_s=phases_s,
        seed=options.seed,
        trace=options.trace.name if options.trace is not None else "the built-in synthetic trace",
        model=options.model,
        cache=CACHE,
        scheduler=SCHEDULER,
        versions=versions(),
        machine=machine(torch.get_num_threads()),
    )
    return concluded(counts)
