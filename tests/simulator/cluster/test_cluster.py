"""Whatever fails, every request ends exactly once, and the books agree."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError, RequestError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.simulator.cluster.description import (
    Admission,
    Autoscaling,
    Cluster,
    Failures,
    Link,
    Outage,
    Policy,
    Pool,
    RouterName,
)
from pagetwin.simulator.cluster.journeys import Outcome
from pagetwin.simulator.cost_model import LinearCostModel
from pagetwin.simulator.results.result import Result
from pagetwin.simulator.simulate import simulate
from pagetwin.simulator.workloads.workload import plain_request

MakePool = Callable[..., Pool]
COSTS = LinearCostModel(
    constant_s=0.02,
    per_prefill_token_s=1e-3,
    per_decode_sequence_s=1.7e-3,
    per_context_token_s=1e-5,
)
ROUTERS: tuple[RouterName, ...] = (
    "round_robin",
    "least_outstanding",
    "least_kv",
    "prefix_affinity",
    "session_sticky",
    "power_of_two",
)


def outcomes(result: Result) -> list[Outcome]:
    return [Outcome(value) for value in result.requests["outcome"].tolist()]


def same(one: Result, other: Result) -> bool:
    columns = one.requests.keys() == other.requests.keys() and all(
        np.array_equal(one.requests[name], other.requests[name], equal_nan=True)
        for name in one.requests
    )
    return columns and one.request_ids == other.request_ids


class Case:
    """A cluster, a policy and a workload drawn from a seed."""

    def __init__(self, seed: int) -> None:
        draw = np.random.Generator(np.random.Philox(seed))

        def chance(share: float) -> bool:
            return bool(draw.random() < share)

        is_split, self.seed = chance(0.3), seed
        count = int(draw.integers(1, 4))
        roles: list[Any] = ["prefill", "decode"] if is_split else ["serve"]
        pools = tuple(
            Pool(
                name=role,
                role=role,
                num_replicas=count,
                cost_model=COSTS,
                cache=CacheConfig(num_blocks=int(draw.integers(16, 60)), block_size=4),
                scheduler=SchedulerConfig(
                    max_model_len=60, max_num_seqs=6, async_scheduling=chance(0.3)
                ),
            )
            for role in roles
        )
        outages = tuple(
            Outage(
                node=int(draw.integers(0, count)), at_s=float(draw.random() * 9), duration_s=back
            )
            for back in draw.choice([0.5, 3.0, 0.0], size=int(draw.integers(0, 3))).tolist()
        )
        if chance(0.15):
            outages = tuple(Outage(node=node, at_s=4.0) for node in range(count))
        self.cluster = Cluster(
            pools=pools,
            link=Link(bytes_per_s=1e4, bytes_per_token=100),
            failures=Failures(
                mtbf_s=5.0 if chance(0.4) else None,
                repair_s=1.0,
                outages=outages,
                max_attempts=int(draw.integers(1, 4)),
            ),
        )
        self.policy = Policy(
            router=ROUTERS[seed % len(ROUTERS)],
            admission=Admission(
                max_outstanding=4 if chance(0.3) else None, max_ttft_s=0.4 if chance(0.2) else None
            ),
            autoscaling=Autoscaling(
                pool=roles[0], target=2.0, interval_s=0.7, cold_start_s=1.0, cooldown_s=1.0
            )
            if chance(0.4)
            else None,
        )
        lengths = "input=uniform:1:30,output=uniform:1:20,requests=60,system=10,families=3"
        self.workload = [
            f"gamma:rate=8,cv=3,{lengths}",
            f"closed:users=7,think=0.3,{lengths}",
            "sessions:rate=3,turns=uniform:1:2,think=0.4,input=uniform:1:9,output=uniform:1:9,"
            "requests=60,system=5",
        ][seed % 3]

    def run(self, *, fast_forward: bool) -> Result:
        return simulate(
            self.workload,
            self.cluster,
            self.policy,
            seed=self.seed,
            fast_forward=fast_forward,
            skip_unfit=True,
        )


def test_every_request_ends_once_whatever_happens_and_runs_repeat() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        case = Case(seed)
        result = case.run(fast_forward=bool(seed % 4))
        rows, books = result.requests, result.conservation
        assert len(set(result.request_ids)) == len(result.request_ids) == books.num_arrived
        finished = rows["outcome"] == Outcome.FINISHED
        assert set(result.reasons) == {
            name for name, ok in zip(result.request_ids, finished, strict=True) if not ok
        }
        times = [rows[f"{name}_s"][finished] for name in ("arrival", "first_token", "end")]
        assert (times[0] < times[1]).all()
        assert (times[1] <= times[2]).all()
        # A retry repeats what the user has seen, so its first step may come after the first token.
        once = finished & (rows["num_attempts"] == 1)
        assert (rows["arrival_s"][once] <= rows["first_scheduled_s"][once]).all()
        assert (rows["first_scheduled_s"][once] < rows["first_token_s"][once]).all()
        assert (rows["num_output_tokens"][finished] >= 1).all()
        assert same(result, case.run(fast_forward=bool(seed % 4)))
        seen.update(outcome.name for outcome in outcomes(result))
        seen["retries"] += result.num_retries
        seen["failures"] += result.num_failures
        seen["retried and finished"] += int((finished & (rows["num_attempts"] > 1)).sum())
        seen["several nodes"] += len(set(rows["node"][finished].tolist())) > 1
        seen["preemptions"] += sum(n.counters.preemptions_recompute for n in result.nodes)
        seen["hits"] += sum(n.counters.prefix_hit_tokens for n in result.nodes)
        seen["scaled"] += len(set(result.timeline["num_serving"].tolist())) > 2
    wanted = ["FINISHED", "REJECTED", "FAILED", "retries", "failures", "retried and finished"]
    wanted += ["several nodes", "preemptions", "hits", "scaled"]
    assert all(seen[goal] > 0 for goal in wanted), seen


def test_jumping_and_stepping_agree_on_every_time() -> None:
    # A router that looks at no load: two replicas' steps may end at one tick.
    compared = 0
    for seed in range(0, 60, 6):
        case = Case(seed)
        jumped, stepped = case.run(fast_forward=True), case.run(fast_forward=False)
        assert same(jumped, stepped)
        assert jumped.gap_counts == stepped.gap_counts
        compared += jumped.conservation.num_finished
    assert compared > 200


def test_a_run_starts_from_its_seed_alone(make_pool: MakePool) -> None:
    spec = "poisson:rate=2,input=uniform:1:20,output=uniform:1:20,requests=40"
    pool = make_pool(num_replicas=2)
    policy = Policy(router="power_of_two")
    assert same(simulate(spec, pool, policy, seed=3), simulate(spec, pool, policy, seed=3))
    assert not same(simulate(spec, pool, policy, seed=3), simulate(spec, pool, policy, seed=4))


def test_what_a_lost_replica_had_is_served_again_from_its_start(make_pool: MakePool) -> None:
    requests = [plain_request(f"r{n}", (1, 2, 3), 6, 0.0) for n in range(4)]
    cluster = Cluster(
        pools=(make_pool(num_replicas=2),),
        failures=Failures(outages=(Outage(node=0, at_s=1.2, duration_s=50.0),)),
    )
    result = simulate(requests, cluster)
    assert outcomes(result) == [Outcome.FINISHED] * 4
    assert (result.num_failures, result.num_retries) == (1, 2)
    # Both nodes got two; those of node 0 begin again behind the step that node 1 is in.
    assert result.requests["num_attempts"].tolist() == [2, 1, 2, 1]
    assert result.requests["node"].tolist() == [1, 1, 1, 1]
    assert result.requests["end_s"].tolist() == [4.5, 3.0, 4.5, 3.0]
    assert result.requests["first_token_s"].tolist() == [0.5] * 4
    assert result.requests["num_output_tokens"].tolist() == [6] * 4


def test_a_request_that_was_lost_too_often_fails(make_pool: MakePool) -> None:
    outages = tuple(Outage(node=0, at_s=at, duration_s=0.1) for at in (1.0, 2.0))
    cluster = Cluster(pools=(make_pool(),), failures=Failures(outages=outages, max_attempts=2))
    result = simulate([plain_request("r", (1,), 20, 0.0)], cluster)
    assert outcomes(result) == [Outcome.FAILED]
    assert result.reasons == {"r": "its replica failed 2 times"}


def test_requests_wait_for_a_replica_that_comes_back_and_fail_where_none_does(
    make_pool: MakePool,
) -> None:
    requests = [plain_request("a", (1,), 20, 0.0), plain_request("b", (1,), 2, 3.0)]
    for duration_s, expected in ((4.0, Outcome.FINISHED), (None, Outcome.FAILED)):
        outage = Outage(node=0, at_s=1.0, duration_s=duration_s)
        cluster = Cluster(pools=(make_pool(),), failures=Failures(outages=(outage,)))
        result = simulate(requests, cluster)
        assert outcomes(result) == [expected] * 2
        if duration_s is not None:
            assert result.requests["first_scheduled_s"].tolist() == [5.0, 5.0]


def test_no_more_than_the_limit_are_ever_in_the_cluster(make_pool: MakePool) -> None:
    spec = "poisson:rate=20,input=5,output=10,requests=200"
    policy = Policy(admission=Admission(max_outstanding=3))
    result = simulate(spec, make_pool(num_replicas=2), policy)
    counts = Counter(outcomes(result))
    assert counts[Outcome.REJECTED] > 50
    assert counts[Outcome.FINISHED] > 10
    assert result.timeline["num_outstanding"].max() == 6
    taken = result.requests["outcome"] == Outcome.FINISHED
    arrivals, ends = result.requests["arrival_s"][taken], result.requests["end_s"][taken]
    assert max(((arrivals <= now) & (ends > now)).sum() for now in arrivals) == 6


def test_turning_away_those_who_would_wait_keeps_first_tokens_early(make_pool: MakePool) -> None:
    spec = "poisson:rate=30,input=40,output=2,requests=400"
    pool = make_pool(cost_model=COSTS, max_num_batched_tokens=64, num_blocks=400, max_num_seqs=30)
    free = simulate(spec, pool)
    guarded = simulate(spec, pool, Policy(admission=Admission(max_ttft_s=0.5)))
    assert Counter(outcomes(guarded))[Outcome.REJECTED] > 20
    assert np.percentile(guarded.served("ttft_s"), 99) < 0.75
    assert np.percentile(free.served("ttft_s"), 99) > 2.0


def test_a_faster_replica_gets_more(make_pool: MakePool) -> None:
    fast = LinearCostModel(constant_s=0.1)
    cluster = Cluster(
        pools=(make_pool(name="slow"), make_pool(name="fast", cost_model=fast)),
    )
    result = simulate("poisson:rate=3,input=5,output=10,requests=200", cluster)
    nodes = Counter(result.requests["node"].tolist())
    assert nodes[1] > 2 * nodes[0] > 0


def test_replicas_start_when_there_is_work_and_go_when_there_is_none(make_pool: MakePool) -> None:
    requests = [plain_request(f"r{n:02}", (1, 2), 16, 0.0) for n in range(16)]
    requests += [plain_request("later", (1, 2), 60, 60.0)]
    scaling = Autoscaling(target=4.0, interval_s=1.0, cold_start_s=5.0, cooldown_s=2.0)
    result = simulate(requests, make_pool(num_replicas=8), Policy(autoscaling=scaling))
    serving = result.timeline["num_serving"]
    assert serving[0] == 1
    assert serving.max() == 4  # 16 requests, four for each
    late = result.timeline["time_s"] > 30
    assert set(serving[late].tolist()) == {1}
    paid = [node.paid_s for node in result.nodes]
    assert paid[0] == result.end_s
    assert all(0 < seconds < 30 for seconds in paid[1:4])
    assert paid[4:] == [0.0] * 4
    # It takes a look and a cold start until a second replica serves.
    assert result.timeline["time_s"][serving > 1].min() == pytest.approx(6.0, abs=0.5)


def split(make_pool: MakePool, **link: float) -> Cluster:
    return Cluster(
        pools=(
            make_pool(name="p", role="prefill"),
            make_pool(name="d", role="decode"),
        ),
        link=Link(**{"bytes_per_s": 100.0, "bytes_per_token": 10, "latency_s": 0.25} | link),  # type: ignore[arg-type]
    )


def test_a_split_request_is_prefilled_carried_and_decoded(make_pool: MakePool) -> None:
    requests = [plain_request("a", tuple(range(10)), 5, 0.0)]
    result = simulate(requests, split(make_pool))
    # A step of half a second; 100 bytes at 100 a second, and a quarter; four steps for the rest.
    assert result.requests["first_token_s"].tolist() == [0.5]
    assert result.requests["end_s"].tolist() == [0.5 + 1.0 + 0.25 + 4 * 0.5]
    assert result.requests["num_output_tokens"].tolist() == [5]
    assert [node.num_steps for node in result.nodes] == [1, 4]


def test_transfers_of_one_replica_queue_and_a_request_of_one_token_needs_none(
    make_pool: MakePool,
) -> None:
    requests = [plain_request(name, tuple(range(10)), 2, 0.0) for name in "ab"]
    requests.append(plain_request("c", tuple(range(10)), 1, 0.0))
    result = simulate(requests, split(make_pool))
    assert result.requests["end_s"].tolist() == [0.5 + 1.25 + 0.5, 0.5 + 2.25 + 0.5, 0.5]


def test_what_a_lost_prefill_replica_was_sending_begins_again(make_pool: MakePool) -> None:
    cluster = split(make_pool)
    outage = Outage(node=0, at_s=1.0, duration_s=2.0)
    cluster = Cluster(pools=cluster.pools, link=cluster.link, failures=Failures(outages=(outage,)))
    result = simulate([plain_request("a", tuple(range(10)), 5, 0.0)], cluster)
    assert outcomes(result) == [Outcome.FINISHED]
    assert result.requests["num_attempts"].tolist() == [2]
    # Noticed when the transfer should have arrived, at 1.75; the node is back at 3.
    assert result.requests["end_s"].tolist() == [3.0 + 0.5 + 1.25 + 2.0]
    assert result.requests["first_token_s"].tolist() == [0.5]


def test_a_carried_prompt_costs_its_last_token_only(make_pool: MakePool) -> None:
    costs = LinearCostModel(constant_s=0.1, per_prefill_token_s=1.0, per_context_token_s=0.01)
    whole = simulate([plain_request("a", tuple(range(20)), 2, 0.0)], make_pool(cost_model=costs))
    cluster = Cluster(
        pools=(
            make_pool(name="p", role="prefill", cost_model=costs),
            make_pool(name="d", role="decode", cost_model=costs),
        ),
        link=Link(bytes_per_s=1.0, bytes_per_token=0, latency_s=0.0),
    )
    parts = simulate([plain_request("a", tuple(range(20)), 2, 0.0)], cluster)
    assert parts.requests["end_s"].tolist() == whole.requests["end_s"].tolist() == [20.1 + 0.31]


def test_samples_and_beams_are_not_split(make_pool: MakePool) -> None:
    several = Request(
        request_id="a", prompt_token_ids=(1,), sampling_params=SamplingParams(n=2, max_tokens=4)
    )
    with pytest.raises(ConfigError, match="'a' asks for 2 samples or beams"):
        simulate([several], split(make_pool))


def test_a_request_that_can_never_fit_is_told_or_left_out(make_pool: MakePool) -> None:
    requests = [plain_request("fits", (1,), 2, 0.0), plain_request("long", (1,) * 64, 2, 0.0)]
    with pytest.raises(RequestError, match=r"'long' has 64 prompt tokens.*leave out what does not"):
        simulate(requests, make_pool())
    result = simulate(requests, make_pool(), skip_unfit=True)
    assert outcomes(result) == [Outcome.FINISHED, Outcome.REFUSED]
    assert "max_model_len=64" in result.reasons["long"]


def test_clusters_that_make_no_sense_are_refused(make_pool: MakePool) -> None:
    pool = make_pool()
    prefill = make_pool(name="p", role="prefill")
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("at least one pool", lambda: Cluster(pools=())),
        ("a name of its own", lambda: Cluster(pools=(pool, pool))),
        ("need each other", lambda: Cluster(pools=(prefill,))),
        ("either all serve", lambda: Cluster(pools=(pool, prefill))),
        ("need a link", lambda: Cluster(pools=(prefill, make_pool(name="d", role="decode")))),
        (
            "there are 1, numbered",
            lambda: Cluster(pools=(pool,), failures=Failures(outages=(Outage(node=1, at_s=0.0),))),
        ),
        ("num_replicas=0", lambda: make_pool(num_replicas=0)),
        ("mtbf_s=nan", lambda: Failures(mtbf_s=float("nan"))),
        ("target=0.0", lambda: Autoscaling(target=0.0)),
        ("no cost model", lambda: simulate([], make_pool(cost_model=None))),
        ("has no request", lambda: simulate([], pool)),
        (
            "the cluster has replicas",
            lambda: simulate([], pool, Policy(autoscaling=Autoscaling(target=1.0, pool="x"))),
        ),
        (
            "'a' arrives at 1e.07 s, after 8e.06 s; simulate a shorter span",
            lambda: simulate([plain_request("a", (1,), 1, 1e7)], pool),
        ),
        (
            "sort the requests",
            lambda: simulate(
                [plain_request("a", (1,), 1, 2.0), plain_request("b", (1,), 1, 1.0)], pool
            ),
        ),
        (
            "virtual time starts at 0",
            lambda: simulate([plain_request("a", (1,), 1, float("nan"))], pool),
        ),
    ]
    for message, make in wrong:
        with pytest.raises(ConfigError, match=message):
            make()
