"""A replica in virtual time: what requests see, and the history that is left."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import simpy

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError, TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.step import StepPlan, StepResult
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    HistoryWriter,
    PlanRecord,
    RefuseRecord,
    ResultRecord,
    SubmitRecord,
    read_history,
)
from pagetwin.simulator.clock import TICKS_PER_S, to_seconds, to_ticks
from pagetwin.simulator.cost_model import LinearCostModel
from pagetwin.simulator.one_replica import simulate_replica
from pagetwin.simulator.process import ReplicaProcess
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.replica_interface import ReplicaLoad
from pagetwin.simulator.timings import RequestTimings, SimulationResult
from pagetwin.simulator.token_source import RecordedTokens, ScriptedTokens

STEP_S = 0.5


def make_request(
    name: str, arrival_s: float, *, prompt: int = 4, width: int | None = None, **params: Any
) -> Request:
    return Request(
        request_id=name,
        prompt_token_ids=tuple(range(prompt)),
        arrival_s=arrival_s,
        sampling_params=SamplingParams(**params),
        beam_search=None if width is None else BeamSearchParams(beam_width=width),
    )


def run(requests: list[Request], **options: Any) -> SimulationResult:
    scheduler = {"max_model_len": 64, "max_num_seqs": 4, **options.pop("scheduler", {})}
    cache = {"num_blocks": 32, "block_size": 4, **options.pop("cache", {})}
    return simulate_replica(
        requests,
        cache=CacheConfig(**cache),
        scheduler=SchedulerConfig(**scheduler),
        cost_model=LinearCostModel(constant_s=STEP_S),
        **options,
    )


def test_a_lone_request_sees_one_step_for_each_token() -> None:
    (seen,) = run([make_request("a", 2.0, max_tokens=5)]).requests
    assert (seen.first_scheduled_s, seen.first_token_s, seen.finish_s) == (2.0, 2.5, 4.5)
    assert (seen.ttft_s, seen.tpot_s, seen.e2e_s) == (0.5, 0.5, 2.5)
    assert (seen.num_output_tokens, seen.finish_reasons) == (5, ("length",))


def test_a_request_that_arrives_during_a_step_waits_for_the_next_one() -> None:
    result = run([make_request("a", 0.0, max_tokens=4), make_request("b", 0.7, max_tokens=2)])
    assert result.requests[1].first_scheduled_s == 1.0
    assert (result.num_steps, result.busy_s, result.end_s) == (4, 2.0, 2.0)


def test_requests_of_one_instant_are_planned_together() -> None:
    result = run([make_request(name, 3.0, max_tokens=1) for name in "ab"])
    assert result.num_steps == 1


def test_an_abort_takes_effect_at_its_time() -> None:
    requests = [make_request("a", 0.0, max_tokens=50), make_request("b", 0.0, max_tokens=2)]
    result = run(requests, aborts={"a": 1.2, "unknown": 1.0})
    seen = result.requests[0]
    assert (seen.finish_s, seen.finish_reasons) == (1.2, ("abort",))
    assert seen.num_output_tokens == 2
    assert result.counters.aborts == 1
    assert result.end_s == 1.5  # the step in flight at 1.2 returns


def test_every_kind_of_request_ends_and_is_timed() -> None:
    requests = [
        make_request("samples", 0.0, n=3, max_tokens=4),
        make_request("beams", 0.0, width=2, max_tokens=3),
        make_request("beam", 0.1, width=1, max_tokens=1),
        make_request("long", 0.2, prompt=64),
    ]
    for async_scheduling in (False, True):
        result = run(requests, scheduler={"async_scheduling": async_scheduling, "max_num_seqs": 5})
        assert [seen.num_output_tokens for seen in result.requests] == [12, 6, 1]
        assert [seen.longest_output for seen in result.requests] == [4, 3, 1]
        assert all(seen.finish_s is not None for seen in result.requests)
        assert "max_model_len" in result.refused["long"]


def test_asynchronous_stepping_costs_no_time_of_its_own() -> None:
    requests = [make_request("a", 0.0, max_tokens=6), make_request("b", 0.0, max_tokens=3)]
    ahead = run(requests, scheduler={"async_scheduling": True})
    assert ahead.end_s == run(requests).end_s


def test_the_history_tells_the_run_and_gives_its_tokens_again(tmp_path: Path) -> None:
    requests = [make_request(f"r{i}", 0.3 * i, n=1 + i % 2, max_tokens=14) for i in range(6)]
    requests.insert(1, make_request("long", 0.2, prompt=64))
    options = {"cache": {"num_blocks": 10}, "aborts": {"r2": 2.0}}
    with HistoryWriter(tmp_path / "run.jsonl", with_block_tables=True) as history:
        result = run(requests, history=history, **options)
    records = list(read_history(tmp_path / "run.jsonl"))
    assert isinstance(records[0], HeaderRecord)
    plans = [record for record in records if isinstance(record, PlanRecord)]
    results = [record for record in records if isinstance(record, ResultRecord)]
    assert len(plans) == len(results) == result.num_steps
    assert result.counters.preemptions_recompute > 0
    assert sum(isinstance(record, RefuseRecord) for record in records) == 1
    assert [record.found for record in records if isinstance(record, AbortRecord)] == [True]
    assert {r.timings.execute_s for r in results} == {STEP_S}
    assert all(set(p.block_tables) == {r.seq_id for r in p.plan.scheduled} for p in plans)
    with HistoryWriter(tmp_path / "again.jsonl", with_block_tables=True) as history:
        run(requests, history=history, tokens=RecordedTokens(records), **options)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "run.jsonl").read_bytes()


def test_the_records_carry_the_virtual_time() -> None:
    history = HistoryWriter()
    requests = [make_request("a", 0.25, max_tokens=2), make_request("b", 0.5, max_tokens=9)]
    run(requests, history=history, aborts={"b": 1.0})
    timed = (SubmitRecord, AbortRecord, PlanRecord, ResultRecord)
    # a's steps are [0.25, 0.75] and [0.75, 1.25]; b joins the second.
    assert [(type(r), r.time_s) for r in history.records if isinstance(r, timed)] == [
        (SubmitRecord, 0.25),
        (PlanRecord, 0.25),
        (SubmitRecord, 0.5),
        (ResultRecord, 0.75),
        (PlanRecord, 0.75),
        (AbortRecord, 1.0),
        (ResultRecord, 1.25),
    ]


class FailingTokens(ScriptedTokens):
    """Fails sample 1 in step 2."""

    def execute(self, plan: StepPlan) -> StepResult:
        result = super().execute(plan)
        if plan.step != 2:
            return result
        sampled = {s: token for s, token in result.sampled.items() if s != "a/1"}
        return msgspec.structs.replace(result, sampled=sampled, failed={"a/1": "no finite logit"})


def test_a_failure_is_timed_recorded_and_given_again() -> None:
    requests = [make_request("a", 0.0, n=2, max_tokens=5)]
    first, again = HistoryWriter(), HistoryWriter()
    (seen,) = run(requests, history=first, tokens=FailingTokens()).requests
    assert seen.finish_reasons == ("error", "length")
    assert (seen.num_output_tokens, seen.longest_output) == (2 + 5, 5)
    results = [record for record in first.records if isinstance(record, ResultRecord)]
    assert [r.failed for r in results] == [{}, {}, {"a/1": "no finite logit"}, {}, {}]
    run(requests, history=again, tokens=RecordedTokens(first.records))
    assert again.records == first.records
    with pytest.raises(TraceError, match="no result for step 0"):
        run(requests, tokens=RecordedTokens([]))


def test_requests_that_go_back_in_time_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'b' arrives at 1.0 s.*sort the requests"):
        run([make_request("a", 2.0), make_request("b", 1.0)])


def test_timings_stream_out_as_requests_end() -> None:
    requests = [make_request("a", 0.0, max_tokens=9), make_request("b", 0.2, max_tokens=2)]
    ended: list[RequestTimings] = []
    streamed = run(requests, on_finish=ended.append)
    kept = run(requests)
    assert [seen.request_id for seen in ended] == ["b", "a"]
    assert (streamed.requests, kept.requests) == ((), tuple(reversed(ended)))


class Cluster:
    """One stepping replica, and what it reported."""

    def __init__(self) -> None:
        self.env = simpy.Environment()
        self.first_tokens: list[tuple[str, int]] = []
        self.ended: list[RequestTimings] = []
        self.replica = ReplicaProcess(
            self.env,
            Replica(
                CacheConfig(num_blocks=32, block_size=4),
                SchedulerConfig(max_model_len=64, max_num_seqs=2),
            ),
            LinearCostModel(constant_s=STEP_S),
            ScriptedTokens(),
            on_first_token=lambda request_id, now: self.first_tokens.append((request_id, now)),
            on_finish=self.on_finish,
        )

    def on_finish(self, timings: RequestTimings) -> None:
        self.ended.append(timings)
        if len(self.ended) < 3:  # a closed loop: the next request follows the answer
            arrival_s = self.env.now / TICKS_PER_S
            self.replica.submit(make_request(f"n{len(self.ended)}", arrival_s, max_tokens=2))


def test_a_replica_reports_first_tokens_and_ends_and_takes_the_next_request_there() -> None:
    cluster = Cluster()
    assert cluster.replica.submit(make_request("a", 0.0, max_tokens=3))
    cluster.env.run()
    assert [(name, to_seconds(now)) for name, now in cluster.first_tokens] == [
        ("a", 0.5),
        ("n1", 2.0),
        ("n2", 3.0),
    ]
    assert [(t.request_id, t.finish_s) for t in cluster.ended] == [
        ("a", 1.5),
        ("n1", 2.5),
        ("n2", 3.5),
    ]


def test_a_replica_tells_its_load_and_what_it_leaves_when_it_fails() -> None:
    cluster = Cluster()
    for name in "abc":
        cluster.replica.submit(make_request(name, 0.0, prompt=5, max_tokens=20))
    assert cluster.replica.load() == ReplicaLoad(
        num_outstanding=3,
        num_waiting=3,
        num_running=0,
        num_queued_tokens=15,
        num_free_blocks=31,
        num_usable_blocks=31,
    )
    cluster.env.run(until=to_ticks(1.7))
    load = cluster.replica.load()
    assert (load.num_waiting, load.num_running, load.num_queued_tokens) == (1, 2, 5)
    assert load.kv_use == pytest.approx(2 * 2 / 31)
    left = cluster.replica.stop()
    assert [request.request_id for request in left] == ["a", "b", "c"]
    cluster.env.run()
    assert cluster.ended == []
    assert cluster.replica.times.result(cluster.replica.scheduler.counters()).num_steps == 3


@pytest.mark.parametrize("time_s", [-1.0, float("nan"), float("inf")])
def test_a_time_before_the_start_is_refused(time_s: float) -> None:
    with pytest.raises(ConfigError, match="virtual time starts at 0"):
        run([make_request("a", time_s)])
    with pytest.raises(ConfigError, match="'a' is aborted"):
        run([make_request("a", 0.0)], aborts={"a": time_s})
