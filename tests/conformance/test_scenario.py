"""Scenario files: what is written is read again, and what is wrong is refused by name."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings

from pagetwin.conformance.scenario import (
    AbortEvent,
    PromptRecipe,
    Scenario,
    ScenarioRequest,
    SubmitEvent,
    decode_scenario,
    encode_scenario,
    load_scenario,
    save_scenario,
)
from pagetwin.conformance.strategies import scenarios
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request

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
            "submitted exactly once",
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
