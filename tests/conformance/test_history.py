"""A history alone tells the tokens, the books and the steps of a run."""

from pathlib import Path

import pytest

from pagetwin.conformance import history as histories
from pagetwin.conformance.goals import GOALS, count_goals
from pagetwin.conformance.lockstep import replay_history
from pagetwin.conformance.scenario import load_scenario
from pagetwin.conformance.twins import judge_scenario
from pagetwin.engine.config import EngineConfig
from pagetwin.engine.core import EngineCore
from pagetwin.engine.errors import TraceError
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.trace import HistoryWriter, Record, ResultRecord, read_history
from pagetwin.simulator.replica import Replica

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return judge_scenario(load_scenario(CORPUS / "swaps_and_refusals.json")).records


def test_each_plan_has_its_result(records: list[Record]) -> None:
    steps = histories.steps(records)
    assert len(steps) > 10
    for step in steps:
        assert step.result is not None
        assert step.result.step == step.plan.plan.step


def test_requests_are_accepted_or_refused(records: list[Record]) -> None:
    accepted, refused = histories.requests(records), histories.refused(records)
    assert accepted
    assert refused
    assert not set(accepted) & set(refused)


def test_the_books_have_a_line_for_each_event(records: list[Record]) -> None:
    timeline = list(histories.counters_timeline(records))
    refused = len(histories.refused(records))
    assert len(timeline) == len(records) - 1 - refused
    assert timeline[-1][1].num_running == 0


def test_output_tokens_are_those_of_the_results(records: list[Record]) -> None:
    outputs = histories.output_tokens(records)
    requests = histories.requests(records)
    plain = {name for name, one in requests.items() if one.beam_search is None}
    sampled: dict[str, list[int]] = {}
    for record in records:
        if isinstance(record, ResultRecord):
            for seq_id, token in record.sampled.items():
                sampled.setdefault(seq_id, []).append(token)
    compared = 0
    for seq_id, tokens in outputs.items():
        if seq_id.rpartition("/")[0] in plain:
            # A row that comes back after its sequence has ended adds a token to the results only.
            assert tokens == sampled.get(seq_id, [])[: len(tokens)]
            compared += len(tokens)
    assert compared > 20


def test_a_history_without_a_header_is_refused() -> None:
    with pytest.raises(TraceError, match="no header"):
        histories.header([])


def test_goals_are_counted_by_their_names(records: list[Record]) -> None:
    counted = count_goals(records)
    assert set(counted) <= set(GOALS), set(counted) - set(GOALS)
    assert (
        counted["swap preemptions"] == histories.steps(records)[-1].plan.counters.preemptions_swap
    )


def test_an_engine_history_is_replayed_by_the_twin_from_the_file_alone(tmp_path: Path) -> None:
    scenario = load_scenario(CORPUS / "swaps_and_refusals.json")
    config = EngineConfig(cache=scenario.cache, scheduler=scenario.scheduler)
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path) as writer:
        core = EngineCore(config, FingerprintExecutor(scenario.cache), history=writer)
        for i in range(4):
            core.add_request(
                Request(
                    request_id=f"q{i}",
                    prompt_token_ids=(i, 1),
                    sampling_params=SamplingParams(max_tokens=3),
                )
            )
        while core.has_unfinished_requests():
            core.step()
    report = replay_history(read_history(path), Replica(scenario.cache, scenario.scheduler))
    assert report.equal, report.explain()
    assert report.steps >= 3
    assert report.decisions_compared > 4
