"""What a plan says beside its winner: what would change it, and how to run it."""

from typing import Any

import msgspec

from pagetwin.simulator.plan.search import Plan
from pagetwin.simulator.plan.trial import Trial
from pagetwin.simulator.results.slo import Slo

SCHEMA = "pagetwin.plan/1"


class Rival(msgspec.Struct, frozen=True, kw_only=True):
    """Another kind of hardware that meets the objective."""

    candidate: str
    price_per_h: float
    break_even_price: float
    """Of one of its GPUs and hour: below that it would be the cheapest."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A plan as plain data, for people and programs."""

    schema: str = SCHEMA
    workload: str
    model: str
    objective: list[str]
    confidence: float
    winner: str | None
    num_gpus: int | None
    price_per_h: float | None
    costs: str
    """Where the times of steps are from."""
    headroom: dict[str, float]
    """Of each limit, the share that the winner leaves."""
    load_met: float | None
    load_missed: float | None
    load_saturated: float | None
    rivals: list[Rival]
    pareto: list[str]
    """Trials such that none is cheaper and at least as often in time."""
    command: str | None
    trials: list[dict[str, Any]]


def answer_of(plan: Plan, slo: Slo, *, workload: str, model: str, confidence: float) -> Answer:
    winner = plan.winner
    return Answer(
        workload=workload,
        model=model,
        objective=[term.name for term in slo.terms],
        confidence=confidence,
        winner=None if winner is None else str(winner.candidate),
        num_gpus=None if winner is None else winner.candidate.num_gpus,
        price_per_h=None if winner is None else winner.price_per_h,
        costs="" if winner is None else winner.costs,
        headroom={} if winner is None else {n: -x for n, x in winner.excess(slo).items()},
        load_met=plan.load_met,
        load_missed=plan.load_missed,
        load_saturated=plan.load_saturated,
        rivals=_rivals(plan),
        pareto=[str(t.candidate) for t in pareto(tuple(t for t in plan.trials if t.factor == 1))],
        command=None if winner is None else serve_command(winner, model),
        trials=[_row(trial) for trial in plan.trials],
    )


def _rivals(plan: Plan) -> list[Rival]:
    if plan.winner is None:
        return []
    price = plan.winner.price_per_h
    return [
        Rival(
            candidate=str(other.candidate),
            price_per_h=other.price_per_h,
            break_even_price=price / other.candidate.num_gpus,
        )
        for other in plan.by_design
        if other is not plan.winner
    ]


def pareto(trials: tuple[Trial, ...]) -> list[Trial]:
    """Cheapest first: each one more often in time than all that are cheaper."""
    best, front = -1.0, []
    judged = [t for t in trials if t.goodput_share is not None]
    for trial in sorted(judged, key=lambda t: (t.price_per_h, -(t.goodput_share or 0.0))):
        share = trial.goodput_share or 0.0
        if share > best:
            best = share
            front.append(trial)
    return front


def serve_command(trial: Trial, model: str) -> str:
    """One replica's, for an engine with vLLM's flags: pagetwin itself has no server yet."""
    one = trial.candidate.deployment
    flags = [
        f"vllm serve {model}",
        f"--tensor-parallel-size {one.tp}",
        f"--max-num-seqs {one.max_num_seqs}",
        f"--max-num-batched-tokens {max(one.max_num_batched_tokens, one.max_num_seqs)}",
        f"--block-size {one.block_size}",
        f"--gpu-memory-utilization {one.gpu_memory_utilization:g}",
        "--enable-prefix-caching" if one.prefix_caching else "--no-enable-prefix-caching",
    ]
    if one.max_model_len is not None:
        flags.append(f"--max-model-len {one.max_model_len}")
    if one.long_prefill_token_threshold:
        flags.append(f"--long-prefill-token-threshold {one.long_prefill_token_threshold}")
    if one.kv_dtype is not None:
        flags.append(f"--kv-cache-dtype {one.kv_dtype.replace('float8', 'fp8')}")
    return " ".join(flags)


def shortfall(plan: Plan, slo: Slo) -> str:
    """Why nothing meets the objective: the candidate that comes closest, and by how much not."""
    judged = [trial for trial in plan.trials if trial.intervals and trial.factor == 1]
    if not judged:
        return "no candidate could be simulated"
    closest = min(judged, key=lambda trial: max(trial.excess(slo).values(), default=float("inf")))
    parts = []
    for term in slo.terms:
        value, excess = closest.intervals[term.name].value, closest.excess(slo)[term.name]
        if excess > 0:
            parts.append(f"{term.name} is {value:.3g} s, {excess:.0%} over its limit")
    saturated = f"; {closest.why}" if closest.why else ""
    values = ", ".join(parts) or "within every limit on average"
    return f"closest is {closest.candidate}: {values}{saturated}"


def _row(trial: Trial) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(trial)
    return {
        "candidate": str(trial.candidate),
        "price_per_h": trial.price_per_h,
        "num_gpus": trial.candidate.num_gpus,
        "load": trial.factor,
        **{name: row[name] for name in ("outcome", "why", "failing", "num_seeds", "costs")},
        "intervals": msgspec.to_builtins(trial.believed),
        "goodput_share": trial.goodput_share,
        "output_tokens_per_s": trial.output_tokens_per_s,
    }
