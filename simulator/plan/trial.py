"""One candidate, simulated until it is clear whether it keeps its promises."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.cluster.description import Policy, Pool
from pagetwin.simulator.costs.profile import Profile
from pagetwin.simulator.plan.candidates import Candidate
from pagetwin.simulator.results.bill import bill
from pagetwin.simulator.results.report import backlog_of
from pagetwin.simulator.results.result import Result
from pagetwin.simulator.results.slo import Slo, SloTerm
from pagetwin.simulator.simulate import simulate
from pagetwin.simulator.statistics.deciding import MIN_SEEDS, Verdict, judge, judge_intervals
from pagetwin.simulator.statistics.intervals import Interval, batch_interval
from pagetwin.simulator.statistics.saturation import Backlog, saturates
from pagetwin.simulator.workloads.faster import Faster
from pagetwin.simulator.workloads.spec import parse_workload
from pagetwin.simulator.workloads.trimmed import Trimmed
from pagetwin.simulator.workloads.workload import Workload

Outcome = Literal["meets", "misses", "saturated", "unclear", "impossible"]


class Task(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What all candidates are tried on. Plain data, so that it travels to other processes."""

    workload: str
    """A spec (`workloads.spec`)."""
    model: dict[str, Any]
    """Its config.json."""
    slo: Slo
    confidence: float = 0.95
    max_seeds: int = 8
    trim: bool = False
    """Cut requests that are too long for the model; else they count as not served."""
    profiles: tuple[Profile, ...] = ()
    """Measured costs, each for what it was measured on; all else goes by the roofline."""

    @cached_property
    def is_fixed(self) -> bool:
        """Whether the workload is the same for every seed: one run is all there is to know."""
        return self.workload.startswith("trace:")

    def build_workload(self, pool: Pool, factor: float) -> Workload:
        workload: Workload = parse_workload(self.workload)
        if self.trim:
            room = (pool.cache.num_blocks - 1) * pool.cache.block_size
            workload = Trimmed(workload, min(pool.scheduler.max_model_len, room))
        return workload if factor == 1 else Faster(workload, factor)

    def pool(self, candidate: Candidate) -> Pool:
        """Raises ConfigError where the model does not fit."""
        deployment = candidate.deployment
        deployment = msgspec.structs.replace(
            deployment,
            max_num_batched_tokens=max(deployment.max_num_batched_tokens, deployment.max_num_seqs),
        )
        costs = deployment.measured(self.model, self.profiles)
        return deployment.pool("replicas", self.model, costs)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What the simulations of one candidate said."""

    candidate: Candidate
    outcome: Outcome
    factor: float = 1.0
    """Times the load."""
    why: str = ""
    """Of one that is impossible, saturated or unclear."""
    intervals: dict[str, Interval] = {}
    """Seconds, by the name of the term."""
    failing: tuple[str, ...] = ()
    num_seeds: int = 0
    goodput_share: float | None = None
    output_tokens_per_s: float | None = None
    cost_per_million_output_tokens: float | None = None
    backlog: Backlog | None = None
    costs: str = ""
    """Where the times of steps are from."""

    @property
    def price_per_h(self) -> float:
        return self.candidate.price_per_h

    @property
    def believed(self) -> dict[str, Interval]:
        """The intervals; none of a queue that grows, for they tell the length of the run."""
        return {} if self.outcome == "saturated" else self.intervals

    @property
    def meets(self) -> bool:
        return self.outcome == "meets"

    def excess(self, slo: Slo) -> dict[str, float]:
        """By how much each term is over its limit, as a share of it; negative: what is left."""
        return {
            term.name: self.intervals[term.name].value / term.limit_s - 1
            for term in slo.terms
            if term.name in self.intervals
        }


def try_candidate(task: Task, candidate: Candidate, factor: float = 1.0) -> Trial:
    """Simulates seeds 0, 1, 2, ... until the answer is clear, a queue grows, or seeds run out.

    All candidates see the same seeds (common random numbers). A workload that is the same for every
    seed runs once, and its percentiles get their intervals from batches of it.
    """
    try:
        pool = task.pool(candidate)
    except ConfigError as error:
        return Trial(candidate=candidate, outcome="impossible", factor=factor, why=str(error))
    policy = Policy(router=candidate.router)
    workload = task.build_workload(pool, factor)
    results: list[Result] = []
    queues: list[Backlog] = []
    for seed in range(1 if task.is_fixed else task.max_seeds):
        results.append(simulate(workload, pool, policy, seed=seed, skip_unfit=True))
        queues.append(backlog_of(results[-1]))
        if _is_saturated(task, queues):
            worst = max(queues, key=lambda queue: queue.growth)
            why = f"up to {worst.growth:.0%} of what arrives piles up"
            return _summed_up(task, candidate, factor, results, "saturated", why)
        verdict = _judged(task, results)
        if verdict.answer == "yes":
            return _summed_up(task, candidate, factor, results, "meets", verdict=verdict)
        if verdict.answer == "no":
            return _summed_up(task, candidate, factor, results, "misses", verdict=verdict)
    verdict = _judged(task, results)
    why = f"a limit lies within the {task.confidence:.0%} interval"
    if any(interval.low is None for interval in verdict.intervals.values()):
        why = f"{len(results[-1].request_ids)} requests are too few for an interval"
    return _summed_up(task, candidate, factor, results, "unclear", why, verdict=verdict)


def _judged(task: Task, results: Sequence[Result]) -> Verdict:
    limits = {term.name: term.limit_s for term in task.slo.terms}
    if task.is_fixed:
        confidence = 1 - (1 - task.confidence) / len(limits)
        intervals = {
            term.name: _interval_of_one(term, results[0], confidence) for term in task.slo.terms
        }
        return judge_intervals(intervals, limits)
    values = {
        verdict.term.name: [float("inf") if v is None else v for v in column]
        for verdict, column in (
            (verdicts[0], [verdict.value_s for verdict in verdicts])
            for verdicts in zip(*(task.slo.verdicts(r) for r in results), strict=True)
        )
    }
    looks = max(1, task.max_seeds - MIN_SEEDS + 1)
    return judge(values, limits, confidence=task.confidence, max_looks=looks)


def _interval_of_one(term: SloTerm, result: Result, confidence: float) -> Interval:
    values = result.served(f"{term.metric}_s")
    if not len(values):
        return Interval(value=float("inf"), confidence=confidence, num_samples=1)
    return batch_interval(
        values,
        lambda batch: float(np.percentile(batch, term.percentile)),
        confidence=confidence,
    )


def _is_saturated(task: Task, queues: Sequence[Backlog]) -> bool:
    if task.is_fixed:
        return queues[0].settling == "grows"
    return saturates(queues, task.confidence)


def _summed_up(
    task: Task,
    candidate: Candidate,
    factor: float,
    results: Sequence[Result],
    outcome: Outcome,
    why: str = "",
    *,
    verdict: Verdict | None = None,
) -> Trial:
    last = results[-1]
    seconds = max(last.duration_s, 1e-12)
    judged = verdict or _judged(task, results)
    return Trial(
        candidate=candidate,
        outcome=outcome,
        factor=factor,
        why=why,
        intervals=judged.intervals,
        failing=judged.failing,
        num_seeds=len(results),
        goodput_share=task.slo.num_good(last) / last.conservation.num_arrived,
        output_tokens_per_s=float(last.served("num_output_tokens").sum()) / seconds,
        cost_per_million_output_tokens=bill(last).cost_per_million_output_tokens,
        backlog=backlog_of(last),
        costs=last.label,
    )
