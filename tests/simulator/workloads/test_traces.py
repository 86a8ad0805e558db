"""A trace becomes the requests that it tells of; a history, the requests that it holds."""

import json
from pathlib import Path

import pytest

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.trace import HistoryWriter
from pagetwin.simulator.cost_model import LinearCostModel
from pagetwin.simulator.one_replica import simulate_replica
from pagetwin.simulator.timings import SimulationResult
from pagetwin.simulator.workloads.traces import Trace


def requests_of(path: Path, **options: float) -> list[Request]:
    workload = Trace(path=path, **options)  # type: ignore[arg-type]
    return [arrival.request for arrival in workload.begin(0).arrivals()]


def test_equal_hashes_become_equal_tokens_and_speed_shortens_the_gaps(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [(0, [1, 2, 3]), (3000, [1, 2, 4])]
    path.write_text(
        "".join(
            json.dumps(
                {"timestamp": at, "input_length": 1100, "output_length": 5, "hash_ids": hashes}
            )
            + "\n"
            for at, hashes in rows
        )
    )
    first, second = requests_of(path, speed=2.0)
    assert first.prompt_token_ids[:1024] == second.prompt_token_ids[:1024]
    assert first.prompt_token_ids[1024] != second.prompt_token_ids[1024]
    assert (first.num_prompt_tokens, first.sampling_params.max_tokens) == (1100, 5)
    assert (first.arrival_s, second.arrival_s) == (0.0, 1.5)
    assert len(requests_of(path, num_requests=1)) == 1


def test_sessions_of_a_trace_are_kept_together(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival,input_tokens,output_tokens,session\n1,2,3,x\n2,2,3,y\n3,2,3,x\n")
    arrivals = list(Trace(path=path).begin(0).arrivals())
    assert [arrival.session for arrival in arrivals] == [0, 1, 0]
    prompts = {arrival.request.prompt_token_ids for arrival in arrivals}
    assert len(prompts) == 3


def run(requests: list[Request], path: Path) -> SimulationResult:
    with HistoryWriter(path) as history:
        return simulate_replica(
            requests,
            cache=CacheConfig(num_blocks=24, block_size=4),
            scheduler=SchedulerConfig(max_model_len=64, max_num_seqs=6),
            cost_model=LinearCostModel(constant_s=0.25),
            aborts={"aborted": 1.5},
            history=history,
        )


def test_a_history_is_served_again_as_it_was(tmp_path: Path) -> None:
    def request(name: str, arrival_s: float, **fields: object) -> Request:
        return Request(
            request_id=name,
            prompt_token_ids=tuple(range(6)),
            arrival_s=arrival_s,
            **fields,  # type: ignore[arg-type]
        )

    recorded = [
        request("stopped", 2.0, sampling_params=SamplingParams(max_tokens=30), priority=3),
        request("samples", 2.0, sampling_params=SamplingParams(n=2, max_tokens=7)),
        request("beams", 2.5, beam_search=BeamSearchParams(beam_width=2)),
        request("late", 4.0, sampling_params=SamplingParams(max_tokens=2)),
    ]
    before = run(recorded, tmp_path / "first.jsonl")
    again = requests_of(tmp_path / "first.jsonl")
    assert [one.arrival_s for one in again] == [0.0, 0.0, 0.5, 2.0]
    assert [one.prompt_token_ids for one in again] == [one.prompt_token_ids for one in recorded]
    assert (again[0].priority, again[1].num_samples, again[2].num_samples) == (3, 2, 2)
    after = run(again, tmp_path / "second.jsonl")
    assert [one.e2e_s for one in after.requests] == [one.e2e_s for one in before.requests]
    assert after.num_steps == before.num_steps


def test_an_aborted_request_comes_back_as_long_as_it_got(tmp_path: Path) -> None:
    long = Request(
        request_id="aborted",
        prompt_token_ids=(1, 2),
        sampling_params=SamplingParams(max_tokens=40),
    )
    (seen,) = run([long], tmp_path / "h.jsonl").requests
    (again,) = requests_of(tmp_path / "h.jsonl")
    assert again.sampling_params.max_tokens == seen.num_output_tokens == 5


def test_a_history_without_requests_is_refused(tmp_path: Path) -> None:
    run([], tmp_path / "h.jsonl")
    with pytest.raises(TraceError, match="the history has no request"):
        requests_of(tmp_path / "h.jsonl")
