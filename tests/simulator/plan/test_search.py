"""The search against brute force, on trials whose outcome is a formula; and one that simulates."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.cluster.deployment import Deployment
from pagetwin.simulator.costs.known_models import config_named
from pagetwin.simulator.plan.answer import answer_of, pareto, shortfall
from pagetwin.simulator.plan.candidates import Candidate, Choices
from pagetwin.simulator.plan.runners import LocalRunner, Resumed
from pagetwin.simulator.plan.search import Search
from pagetwin.simulator.plan.trial import Task, Trial, try_candidate
from pagetwin.simulator.results.slo import parse_slo
from pagetwin.simulator.statistics.intervals import Interval
from pagetwin.simulator.workloads.faster import Faster
from pagetwin.simulator.workloads.spec import parse_workload

SLO = parse_slo("ttft_p95<500ms")
ONE_EACH = {
    "max_num_seqs": (256,),
    "max_num_batched_tokens": (8192,),
    "long_prefill_token_threshold": (0,),
    "prefix_caching": (True,),
    "router": ("least_outstanding",),
}


class Formula:
    """A candidate bears `capacity` per GPU; the load is 1 times the factor."""

    def __init__(self, capacity: dict[str, float], bonus: float = 0.0) -> None:
        self.capacity = capacity
        self.bonus = bonus
        self.count = 0

    def run(self, tasks: Sequence[tuple[Candidate, float]]) -> list[Trial]:
        self.count += len(tasks)
        return [self.judge(*task) for task in tasks]

    def judge(self, candidate: Candidate, factor: float) -> Trial:
        per_gpu = self.capacity[candidate.deployment.gpu]
        if candidate.deployment.max_num_seqs == 64:
            per_gpu += self.bonus
        used = factor / (per_gpu * candidate.num_gpus)
        return Trial(
            candidate=candidate,
            outcome="meets" if used <= 1 else "misses",
            factor=factor,
            intervals={SLO.terms[0].name: Interval(value=used / 2, confidence=0.95, num_samples=3)},
            goodput_share=min(1.0, 1 / used),
        )


def search(runner: Formula, choices: Choices, max_gpus: int) -> Search:
    return Search(choices, runner, base=Deployment(), max_gpus=max_gpus)


@given(
    st.floats(0.02, 2.0),
    st.floats(0.02, 2.0),
    st.integers(1, 24),
    st.sampled_from([(1,), (1, 2), (2, 4)]),
)
def test_the_cheapest_is_found(
    h100: float, l40s: float, max_gpus: int, tp: tuple[int, ...]
) -> None:
    formula = Formula({"H100": h100, "L40S": l40s})
    choices = Choices(gpus=("h100", "l40s"), tp=tp, **ONE_EACH)  # type: ignore[arg-type]
    prices = [
        first.times(count).price_per_h
        for first in choices.hardware(Deployment(), {})
        for count in range(1, max_gpus // first.gpus_per_replica + 1)
        if formula.judge(first.times(count), 1.0).meets
    ]
    if not any(size <= max_gpus for size in tp):
        with pytest.raises(ConfigError, match="nothing to choose from"):
            search(formula, choices, max_gpus).run()
        return
    found = search(formula, choices, max_gpus).run()
    if not prices:
        assert found.winner is None
        assert "over its limit" in shortfall(found, SLO)
        return
    assert found.winner is not None
    assert found.winner.price_per_h == min(prices)
    assert found.load_met is not None
    capacity = formula.capacity[found.winner.candidate.deployment.gpu]
    bears = capacity * found.winner.candidate.num_gpus
    assert found.load_met <= bears + 1e-9
    if found.load_missed is not None:
        assert bears < found.load_missed


def test_a_knob_that_saves_a_replica_is_taken() -> None:
    choices = Choices(gpus=("h100",), tp=(1,), **(ONE_EACH | {"max_num_seqs": (256, 64)}))  # type: ignore[arg-type]
    found = search(Formula({"H100": 0.3}, bonus=0.1), choices, 8).run()
    assert found.winner is not None
    assert found.winner.candidate.num_replicas == 3
    assert found.winner.candidate.deployment.max_num_seqs == 64


def test_a_knob_rescues_what_no_number_of_gpus_does() -> None:
    choices = Choices(gpus=("h100",), tp=(1,), **(ONE_EACH | {"max_num_seqs": (256, 64)}))  # type: ignore[arg-type]
    found = search(Formula({"H100": 0.1}, bonus=0.4), choices, 4).run()
    assert found.winner is not None
    assert found.winner.candidate.num_replicas == 2


def test_what_nothing_beats_is_on_the_front() -> None:
    formula = Formula({"H100": 0.3, "L40S": 0.1})
    choices = Choices(gpus=("h100", "l40s"), tp=(1,), **ONE_EACH)  # type: ignore[arg-type]
    found = search(formula, choices, 16).run()
    front = pareto(tuple(trial for trial in found.trials if trial.factor == 1))
    shares = [trial.goodput_share or 0 for trial in front]
    assert shares == sorted(set(shares))
    answer = answer_of(found, SLO, workload="w", model="m", confidence=0.95)
    assert answer.rivals
    for rival in answer.rivals:
        assert rival.break_even_price > 0
    assert answer.command is not None
    assert "--max-num-seqs 256" in answer.command


@settings(max_examples=20)
@given(st.sampled_from([0.5, 1.0, 3.0]), st.integers(0, 5))
def test_a_faster_load_is_the_same_requests_sooner(factor: float, seed: int) -> None:
    workload = parse_workload("poisson:rate=5,input=8,output=4,requests=20")
    before = [arrival.request for arrival in workload.begin(seed).arrivals()]
    after = [arrival.request for arrival in Faster(workload, factor).begin(seed).arrivals()]
    assert [one.request_id for one in after] == [one.request_id for one in before]
    for one, other in zip(after, before, strict=True):
        assert one.arrival_s == pytest.approx(other.arrival_s / factor)
        assert one.prompt_token_ids == other.prompt_token_ids


def task(slo: str, workload: str = "poisson:rate=20,input=64,output=8,requests=120") -> Task:
    return Task(workload=workload, model=config_named("smollm2-135m"), slo=parse_slo(slo))


def candidate(replicas: int = 1, **knobs: object) -> Candidate:
    return Candidate(deployment=msgspec.convert({"replicas": replicas, **knobs}, Deployment))


def test_trials_by_simulation_tell_yes_no_saturated_and_impossible() -> None:
    easy = try_candidate(task("ttft_p95<1s,tpot_p95<1s"), candidate())
    assert easy.outcome == "meets"
    assert easy.num_seeds >= 3
    assert easy.goodput_share == 1.0
    assert "uncalibrated" in easy.costs
    hard = try_candidate(task("ttft_p95<0.1ms"), candidate())
    assert (hard.outcome, hard.failing) == ("misses", ("ttft_p95<0.1ms",))
    flood = "poisson:rate=120,input=64,output=64,requests=800"
    drowned = try_candidate(task("ttft_p95<1s", flood), candidate(max_num_seqs=2))
    assert drowned.outcome == "saturated"
    assert "piles up" in drowned.why
    large = Task(workload=flood, model=config_named("llama-3.1-70b"), slo=SLO)
    alone = try_candidate(large, candidate(gpu="l40s"))
    assert alone.outcome == "impossible"
    assert "no memory is left for KV blocks" in alone.why


def test_a_search_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    what, path = task("ttft_p95<1s"), tmp_path / "trials.jsonl"
    keys = [(candidate(), 1.0), (candidate(2), 1.0)]
    with LocalRunner(what, 1) as runner:
        first = Resumed(runner, what, path).run(keys[:1])
        path.write_bytes(path.read_bytes() + b'{"candidate": {"depl')
        again = Resumed(runner, what, path)
        assert again.num_known == 1
        assert again.run(keys)[0] == first[0]
    assert path.read_bytes().count(b"\n") == 3
    with pytest.raises(ConfigError, match="another workload, model, objective"):
        Resumed(runner, task("ttft_p95<2s"), path)
    path.write_bytes(path.read_bytes().replace(b'"outcome"', b'"income"', 1))
    with pytest.raises(ConfigError, match=r"trials.jsonl:2: not a trial .* remove it"):
        Resumed(runner, what, path)


def test_choices_are_checked() -> None:
    with pytest.raises(ConfigError, match="'h900' is unknown"):
        Choices(gpus=("h900",))
    with pytest.raises(ConfigError, match="max_num_seqs has nothing to choose from"):
        Choices(gpus=("h100",), max_num_seqs=())
    with pytest.raises(ConfigError, match="max_gpus=0 is below 1"):
        search(Formula({}), Choices(gpus=("h100",)), 0)
    with pytest.raises(ConfigError, match="load factor 0"):
        Faster(parse_workload("poisson:rate=5,input=8,output=4,requests=2"), 0)


def test_a_trace_too_short_for_an_interval_is_unclear_for_that_reason(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    rows = "".join(f"{place},64,8\n" for place in range(30))
    trace.write_text("arrival_time,prompt_tokens,output_tokens\n" + rows)
    found = try_candidate(task("ttft_p95<1s", f"trace:file={trace}"), candidate())
    assert (found.outcome, found.why) == ("unclear", "30 requests are too few for an interval")
