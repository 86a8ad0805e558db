"""Scenario files: what is written is read again, and what is wrong is refused by name."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings

from pagetwin.conformance.goals import count_goals
from pagetwin.conformance.history import output_tokens
from pagetwin.conformance.scenario import (
    AbortEvent,
    PromptRecipe,
    ResultEvent,
    Scenario,
    ScenarioRequest,
    ScriptedOutput,
    SubmitEvent,
    decode_scenario,
    encode_scenario,
    load_scenario,
    save_scenario,
)
from pagetwin.conformance.strategies import scenarios
from pagetwin.conformance.twins import judge_scenario
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.step import FinishedSequence
from pagetwin.engine.trace import Record, ResultRecord

REQUEST = Request(request_id="a", prompt_token_ids=(1, 2))


def small(**changes: object) -> Scenario:
    scenario = Scenario(
        cache=CacheConfig(num_blocks=4),
        scheduler=SchedulerConfig(max_model_len=8),
        requests=(ScenarioRequest(request=REQUEST),),
        events=(SubmitEvent(round=0, request_id="a"),),
        vocab_size=4,
        eos_token_ids=(3,),
    )
    return Scenario(**{**msgspec.structs.asdict(scenario), **changes})


@given(scenarios())
@settings(max_examples=30)
def test_a_scenario_is_read_as_it_was_written(scenario: Scenario) -> None:
    data = encode_scenario(scenario)
    assert decode_scenario(data) == scenario
    assert encode_scenario(decode_scenario(data)) == data


def test_a_file_holds_only_what_is_not_default(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    save_scenario(small(), path)
    assert load_scenario(path) == small()
    text = path.read_text()
    assert '"schema": "pagetwin.scenario/1"' in text
    assert "sampling_params" not in text


def test_a_recipe_is_the_same_prompt_every_time() -> None:
    recipe = PromptRecipe(seed=7, length=5)
    scenario = small(
        requests=(
            ScenarioRequest(request=Request(request_id="a", prompt_token_ids=()), prompt=recipe),
        )
    )
    request = scenario.requests_by_id()["a"]
    assert request.prompt_token_ids == recipe.token_ids(4) == (2, 1, 3, 0, 0)
    assert request.eos_token_ids == (3,)


def test_events_of_a_moment_keep_their_order() -> None:
    events = (
        AbortEvent(round=1, request_id="b"),
        SubmitEvent(round=0, request_id="a"),
        AbortEvent(round=1, request_id="a"),
        AbortEvent(round=1, request_id="c", in_flight=True),
    )
    scenario = small(events=events)
    assert list(scenario.events_at(1, in_flight=False)) == [events[0], events[2]]
    assert list(scenario.events_at(1, in_flight=True)) == [events[3]]
    assert scenario.last_round == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not a scenario"),
        (b'{"schema": "pagetwin.scenario/2"}', "schema 'pagetwin.scenario/2', this version reads"),
        (b'{"vocab_size": 3}', "schema ''"),
        (b'{"schema": "pagetwin.scenario/1"}', "missing required field"),
        (
            encode_scenario(small()).replace(b'"vocab_size": 4', b'"vocab_size": 2'),
            "prompt token 2, outside",
        ),
        (
            encode_scenario(small()).replace(b'"vocab_size": 4', b'"vocab": 4'),
            "unknown field `vocab`",
        ),
        (
            encode_scenario(small()).replace(b'"num_blocks": 4', b'"num_blocks": 1'),
            "cache.num_blocks=1 is below 2",
        ),
        (
            encode_scenario(small()).replace(b'"submit"', b'"abort"'),
            "and be submitted",
        ),
        (encode_scenario(small()).replace(b'"round": 0', b'"round": -1'), "negative"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=message) as caught:
        load_scenario(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere\.json: cannot be read"):
        load_scenario(tmp_path / "nowhere.json")


def test_a_result_event_lets_the_step_in_flight_take_effect_before_the_next_plan() -> None:
    """Without it an asynchronous run always has a step in flight when it plans."""
    limits = SchedulerConfig(max_model_len=8, async_scheduling=True)
    base = small(scheduler=limits, cache=CacheConfig(num_blocks=4, block_size=2))
    early = [ResultEvent(round=number) for number in range(1, 6)]
    told = Scenario(**{**msgspec.structs.asdict(base), "events": (*base.events, *early)})
    goals = [count_goals(judge_scenario(one).records) for one in (base, told)]
    assert goals[0]["plans with a step in flight"] > 0
    assert goals[1]["plans with a step in flight"] == 0


def test_scripted_outputs_decide_where_a_sequence_ends() -> None:
    for output, reason in (
        (ScriptedOutput(seq_id="a/0", token_ids=(1, 2, 3)), "stop"),
        (ScriptedOutput(seq_id="a/0", token_ids=(1, 2), then_fails=True), "error"),
        (ScriptedOutput(seq_id="a/0", token_ids=(1,)), "length"),
    ):
        scenario = small(outputs=(output,), cache=CacheConfig(num_blocks=4, block_size=4))
        assert decode_scenario(encode_scenario(scenario)) == scenario
        verdict = judge_scenario(scenario)
        assert verdict.holds, verdict.explain()
        tokens = output_tokens(verdict.records)["a/0"]
        assert tuple(tokens[: len(output.token_ids)]) == output.token_ids
        assert [end.reason for record in verdict.records for end in ends(record)] == [reason]


def ends(record: Record) -> tuple[FinishedSequence, ...]:
    return record.finished if isinstance(record, ResultRecord) else ()
