"""Ranges, normal forms and refusals of sampling parameters."""

import math
import warnings
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from pagetwin.engine.errors import RequestError
from pagetwin.engine.output_constraints import RepetitionDetection, StructuredOutputs
from pagetwin.engine.sampling_params import (
    BeamSearchParams,
    SamplingParams,
    check_against,
    unsupported_fields,
)

NAN, INF = math.nan, math.inf
LIMITS = {"vocab_size": 100, "max_logprobs": 20, "max_model_len": 64}


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth > 1 else {}


def make(**fields: Any) -> SamplingParams:
    """Parameters from values of any type, as a careless caller gives them."""
    return SamplingParams(**fields)


# Each row: the fields given, the field that the message names, and the limit that it states.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 0}, "n=0", "below 1"),
    ({"n": 16385}, "n=16385", "above 16384"),
    ({"n": 1.0}, "n=1.0", "not a whole number"),
    ({"n": True}, "n=True", "not a whole number"),
    ({"n": None}, "n=None", "not a whole number"),
    ({"n": 2, "temperature": 0}, "n=2", "several samples at temperature=0"),
    ({"best_of": 0}, "best_of=0", "below 1"),
    ({"best_of": 2, "n": 3}, "best_of=2", "below n=3"),
    ({"best_of": 2, "temperature": 0}, "best_of=2", "several samples"),
    ({"best_of": 16385}, "best_of=16385", "above 16384"),
    ({"temperature": -0.1}, "temperature=-0.1", "[0, 2]"),
    ({"temperature": 2.1}, "temperature=2.1", "[0, 2]"),
    ({"temperature": NAN}, "temperature=nan", "[0, 2]"),
    ({"temperature": INF}, "temperature=inf", "[0, 2]"),
    ({"temperature": "1"}, "temperature='1'", "not a number"),
    ({"temperature": None}, "temperature=None", "not a number"),
    ({"top_p": 0.0}, "top_p=0.0", "(0, 1]"),
    ({"top_p": 1.01}, "top_p=1.01", "(0, 1]"),
    ({"top_p": NAN}, "top_p=nan", "(0, 1]"),
    ({"top_k": -2}, "top_k=-2", "below -1"),
    ({"top_k": 5.0}, "top_k=5.0", "not a whole number"),
    ({"min_p": -0.01}, "min_p=-0.01", "[0, 1]"),
    ({"min_p": 1.01}, "min_p=1.01", "[0, 1]"),
    ({"presence_penalty": -2.1}, "presence_penalty=-2.1", "[-2, 2]"),
    ({"presence_penalty": NAN}, "presence_penalty=nan", "[-2, 2]"),
    ({"frequency_penalty": 2.1}, "frequency_penalty=2.1", "[-2, 2]"),
    ({"repetition_penalty": 0.0}, "repetition_penalty=0.0", "(0, inf)"),
    ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0", "(0, inf)"),
    ({"repetition_penalty": INF}, "repetition_penalty=inf", "(0, inf)"),
    ({"seed": 2**63}, "seed=9223372036854775808", "above 9223372036854775807"),
    ({"seed": -(2**63) - 1}, "seed=-9223372036854775809", "below -9223372036854775808"),
    ({"seed": 1.0}, "seed=1.0", "not a whole number"),
    ({"seed": False}, "seed=False", "not a whole number"),
    ({"stop": ["a", ""]}, "stop=['a', '']", "empty string"),
    ({"stop": ""}, "stop=('',)", "empty string"),
    ({"stop": list("abcde")}, "stop=", "5 strings, above 4"),
    ({"stop": [1]}, "stop=[1]", "not a list of strings"),
    ({"stop": "a", "detokenize": False}, "stop=('a',)", "detokenize=False"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]=-1", "below 0"),
    ({"stop_token_ids": [3, "4"]}, "stop_token_ids[1]='4'", "not a whole number"),
    ({"stop_token_ids": 3}, "stop_token_ids=3", "not a list of token ids"),
    ({"include_stop_str_in_output": 1}, "include_stop_str_in_output=1", "neither True nor False"),
    ({"ignore_eos": None}, "ignore_eos=None", "neither True nor False"),
    ({"skip_special_tokens": "no"}, "skip_special_tokens='no'", "neither True nor False"),
    ({"detokenize": 0}, "detokenize=0", "neither True nor False"),
    ({"min_tokens": -1}, "min_tokens=-1", "below 0"),
    ({"min_tokens": 17}, "min_tokens=17", "above max_tokens=16"),
    ({"max_tokens": 0}, "max_tokens=0", "below 1"),
    ({"max_tokens": 1.5}, "max_tokens=1.5", "not a whole number"),
    ({"logprobs": -2}, "logprobs=-2", "below -1"),
    ({"logprobs": "5"}, "logprobs='5'", "not a whole number"),
    ({"prompt_logprobs": -2}, "prompt_logprobs=-2", "below -1"),
    ({"logprob_token_ids": []}, "logprob_token_ids=()", "is empty"),
    ({"logprob_token_ids": [0] * 129}, "len(logprob_token_ids)=129", "above the 128 ids"),
    ({"logit_bias": {"x": 1.0}}, "logit_bias key='x'", "not a whole number"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias key=-1", "below 0"),
    ({"logit_bias": {3: NAN}}, "logit_bias[3]=nan", "(-inf, inf)"),
    ({"logit_bias": {3: "1"}}, "logit_bias[3]='1'", "not a number"),
    ({"logit_bias": {3: 1, "3": 2}}, "logit_bias key='3'", "stands twice"),
    ({"logit_bias": [3]}, "logit_bias=[3]", "not a mapping"),
    ({"allowed_token_ids": []}, "allowed_token_ids=()", "is empty"),
    ({"allowed_token_ids": [1.0]}, "allowed_token_ids[0]=1.0", "not a whole number"),
    ({"bad_words": [""]}, "bad_words=['']", "empty string"),
    ({"bad_words": "no"}, "bad_words='no'", "not a list of strings"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens=0", "leaves no prompt"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens=-2", "below -1"),
    ({"output_kind": "all"}, "output_kind='all'", "not one of cumulative, delta, final_only"),
    ({"stream_interval": 0}, "stream_interval=0", "below 1"),
    ({"thinking_token_budget": -1}, "thinking_token_budget=-1", "below 0"),
    ({"trace_decode_token_ids": [-5]}, "trace_decode_token_ids[0]=-5", "below 0"),
]


@pytest.mark.parametrize(("fields", "named", "limit"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_refusal_names_field_value_limit_and_remedy(
    fields: dict[str, Any], named: str, limit: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        make(**fields)
    statement, _, remedy = str(refusal.value).partition("; ")
    assert statement.startswith(named)
    assert limit in statement
    assert remedy


ACCEPTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"n": 16384}, {"n": 16384}),
    ({"n": 2, "best_of": 2}, {"num_samples": 2, "num_logprobs": None}),
    ({"n": 2, "best_of": 5}, {"num_samples": 5, "num_logprobs": 0}),
    ({"temperature": 2}, {"temperature": 2.0, "is_greedy": False}),
    ({"temperature": 9e-6}, {"temperature": 0.0, "is_greedy": True}),
    (
        {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.5},
        {"top_p": 1.0, "top_k": 0, "min_p": 0.0},
    ),
    ({"top_k": -1}, {"top_k": 0}),
    ({"top_k": 10**9}, {"top_k": 10**9}),
    ({"top_p": 1}, {"top_p": 1.0}),
    ({"min_p": 1}, {"min_p": 1.0}),
    ({"seed": -1}, {"seed": None}),
    ({"seed": 0}, {"seed": 0}),
    ({"seed": np.int64(7)}, {"seed": 7}),
    ({"stop": "ab"}, {"stop": ("ab",)}),
    ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
    ({"stop": None}, {"stop": ()}),
    ({"stop_token_ids": np.array([4, 5]).tolist()}, {"stop_token_ids": (4, 5)}),
    ({"max_tokens": None, "min_tokens": 99}, {"max_tokens": None}),
    ({"logprobs": True}, {"logprobs": 1, "num_logprobs": 1}),
    ({"logprobs": False}, {"logprobs": None, "num_logprobs": None}),
    ({"logprobs": 0}, {"logprobs": 0, "num_logprobs": 0}),
    ({"logprobs": -1}, {"logprobs": -1, "num_logprobs": -1}),
    ({"logprob_token_ids": [3]}, {"num_logprobs": 0}),
    ({"logit_bias": {"7": 300, 8: -300}}, {"logit_bias": {7: 100.0, 8: -100.0}}),
    ({"truncate_prompt_tokens": -1}, {"truncate_prompt_tokens": -1}),
    ({"presence_penalty": -2, "frequency_penalty": 2}, {"presence_penalty": -2.0}),
]


@pytest.mark.parametrize(("fields", "expected"), ACCEPTED, ids=lambda value: str(value)[:40])
def test_values_within_range_take_their_normal_form(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    params = make(**fields)
    for name, value in expected.items():
        assert getattr(params, name) == value
        assert type(getattr(params, name)) is type(value)


def test_a_temperature_near_zero_is_raised_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"temperature=0.001 is raised to 0.01") as caught:
        params = SamplingParams(temperature=0.001)
    assert params.temperature == 0.01
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SamplingParams(temperature=0.01).temperature == 0.01


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        make(temprature=1.0)


IDS = st.lists(st.integers(0, 99), min_size=1, max_size=4)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(1, 4),
    "best_of": st.none() | st.integers(4, 8),
    "temperature": st.floats(0.01, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 200),
    "min_p": st.floats(0, 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(1e-3, 1e3),
    "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
    "stop": st.text(min_size=1) | st.lists(st.text(min_size=1), max_size=4),
    "stop_token_ids": IDS,
    "include_stop_str_in_output": st.booleans(),
    "ignore_eos": st.booleans(),
    "min_tokens": st.integers(0, 16),
    "max_tokens": st.none() | st.integers(16, 64),
    "logprobs": st.none() | st.booleans() | st.integers(-1, 20),
    "prompt_logprobs": st.none() | st.integers(-1, 20),
    "logprob_token_ids": st.none() | IDS,
    "logit_bias": st.none() | st.dictionaries(st.integers(0, 99), st.floats(-1e3, 1e3)),
    "allowed_token_ids": st.none() | IDS,
    "bad_words": st.lists(st.text(min_size=1), max_size=3),
    "skip_special_tokens": st.booleans(),
    "spaces_between_special_tokens": st.booleans(),
    "truncate_prompt_tokens": st.none() | st.just(-1) | st.integers(1, 64),
    "output_kind": st.sampled_from(["cumulative", "delta", "final_only"]),
    "stream_interval": st.integers(1, 9),
    "structured_outputs": st.none()
    | st.builds(StructuredOutputs, regex=st.text(min_size=1))
    | st.builds(StructuredOutputs, choice=st.lists(st.text(min_size=1), min_size=1))
    | st.just(StructuredOutputs(json={"type": "object", "properties": {"a": {}}})),
    "repetition_detection": st.none()
    | st.builds(RepetitionDetection, max_pattern_size=st.integers(1, 5)),
    "thinking_token_budget": st.none() | st.integers(0, 99),
    "trace_decode_token_ids": IDS,
    "extra_args": st.none() | st.dictionaries(st.text(), st.integers() | st.text()),
}


def test_the_strategy_knows_every_field() -> None:
    assert {*FIELDS, "detokenize"} == set(SamplingParams.__struct_fields__)


@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_parameters_survive_json_and_normalise_once(fields: dict[str, Any]) -> None:
    params = make(**fields)
    event(f"{len(fields) // 8 * 8}+ fields")
    decoded = msgspec.json.decode(msgspec.json.encode(params), type=SamplingParams)
    assert decoded == params
    assert make(**{f: getattr(params, f) for f in params.__struct_fields__}) == params
    assert msgspec.json.encode(decoded) == msgspec.json.encode(params)


def test_json_out_of_range_is_refused_with_the_same_words() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"top_p=3\.0 is outside \(0, 1\]"):
        msgspec.json.decode(b'{"top_p": 3}', type=SamplingParams)


def test_a_replaced_field_is_checked() -> None:
    with pytest.raises(RequestError, match="top_p"):
        msgspec.structs.replace(SamplingParams(), top_p=3.0)


def test_a_callers_dict_is_not_shared() -> None:
    bias = {3: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[3] = 2.0
    assert params.logit_bias == {3: 1.0}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": 65}, "max_tokens=65 is above 64"),
        ({"max_tokens": None, "min_tokens": 65}, "min_tokens=65 is above 64"),
        ({"truncate_prompt_tokens": 65}, "truncate_prompt_tokens=65 is above 64"),
        ({"logprobs": 21}, "logprobs=21 asks for 21 tokens"),
        ({"logprobs": -1}, "logprobs=-1 asks for 100 tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs=21 asks for 21 tokens"),
        ({"stop_token_ids": [5, 100]}, "stop_token_ids=100 is outside the vocabulary of 100"),
        ({"logprob_token_ids": [100]}, "logprob_token_ids=100 is outside"),
        ({"allowed_token_ids": [100]}, "allowed_token_ids=100 is outside"),
        ({"trace_decode_token_ids": [100]}, "trace_decode_token_ids=100 is outside"),
        ({"logit_bias": {"100": 1.0}}, "logit_bias=100 is outside"),
    ],
)
def test_model_limits_are_checked_at_submission(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as refusal:
        check_against(make(**fields), **LIMITS)
    assert str(refusal.value).startswith(named)
    assert "; " in str(refusal.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 64, "min_tokens": 64},
        {"logprobs": 20, "prompt_logprobs": 20},
        {"stop_token_ids": [99], "logit_bias": {99: 1.0}, "allowed_token_ids": [0]},
        {"top_k": 1000},
    ],
)
def test_values_at_the_models_limits_pass(fields: dict[str, Any]) -> None:
    check_against(make(**fields), **LIMITS)


def test_the_whole_vocabulary_may_be_asked_for_where_the_limit_allows() -> None:
    check_against(SamplingParams(logprobs=-1), **{**LIMITS, "max_logprobs": 100})


def test_fields_without_an_implementation_are_named() -> None:
    params = SamplingParams(
        spaces_between_special_tokens=False,
        structured_outputs=StructuredOutputs(regex="a+"),
        repetition_detection=RepetitionDetection(max_pattern_size=3),
        thinking_token_budget=5,
        extra_args={"a": 1},
    )
    assert unsupported_fields(params) == (
        "structured_outputs",
        "repetition_detection",
        "thinking_token_budget",
        "extra_args",
        "spaces_between_special_tokens",
    )
    assert unsupported_fields(SamplingParams(top_p=0.5, n=2)) == ()


def test_a_beam_search_takes_only_what_it_can_honour() -> None:
    beams = BeamSearchParams(beam_width=2)
    allowed = SamplingParams(temperature=0, repetition_penalty=1.1, stop_token_ids=(5,))
    assert unsupported_fields(allowed, beams) == ()
    assert unsupported_fields(SamplingParams(), beams) == ()
    assert unsupported_fields(SamplingParams(temperature=0.5), beams) == ("temperature",)
    assert unsupported_fields(SamplingParams(n=2), beams) == ()
    refused = SamplingParams(best_of=2, top_p=0.5, stop=("a",), logprobs=1)
    assert unsupported_fields(refused, beams) == ("best_of", "top_p", "stop", "logprobs")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"beam_width": 0}, "beam_width=0 is below 1"),
        ({"beam_width": 2.0}, "beam_width=2.0 is not a whole number"),
        ({"beam_width": 2, "length_penalty": NAN}, "length_penalty=nan is outside (-inf, inf)"),
        ({"beam_width": 2, "length_penalty": INF}, "length_penalty=inf is outside (-inf, inf)"),
        ({"beam_width": 2, "early_stopping": "always"}, "early_stopping='always' is not True"),
        ({"beam_width": 2, "early_stopping": 1}, "early_stopping=1 is not True"),
    ],
)
def test_beam_search_ranges(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as refusal:
        BeamSearchParams(**fields)
    assert str(refusal.value).startswith(named)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_beam_search_survives_json(early_stopping: Any) -> None:
    beams = BeamSearchParams(beam_width=3, length_penalty=-1, early_stopping=early_stopping)
    decoded = msgspec.json.decode(msgspec.json.encode(beams), type=BeamSearchParams)
    assert decoded == beams
    assert type(decoded.early_stopping) is type(early_stopping)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "structured_outputs=[] does not give exactly one"),
        ({"regex": "a", "json_object": True}, "structured_outputs=['regex', 'json_object'] does"),
        ({"regex": ""}, "structured_outputs.regex='' is empty"),
        ({"choice": []}, "structured_outputs.choice=() is empty"),
        ({"choice": ["a", ""]}, "structured_outputs.choice=['a', ''] has an empty string"),
        ({"grammar": ""}, "structured_outputs.grammar='' is empty"),
        ({"json": {}}, "structured_outputs.json={} is empty"),
        ({"json": nested(65)}, "structured_outputs.json=['a'] is nested deeper than 64"),
        ({"json_object": 1}, "structured_outputs.json_object=1 is neither"),
    ],
)
def test_a_structured_output_is_exactly_one_language(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as refusal:
        StructuredOutputs(**fields)
    assert str(refusal.value).startswith(named)


def test_a_schema_of_the_greatest_depth_passes() -> None:
    assert StructuredOutputs(json=nested(64)).json == nested(64)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_pattern_size": 0}, "repetition_detection.max_pattern_size=0 is below 1"),
        (
            {"max_pattern_size": 2, "min_pattern_size": 3},
            "repetition_detection.min_pattern_size=3 is above 2",
        ),
        ({"max_pattern_size": 2, "min_count": 1}, "repetition_detection.min_count=1 is below 2"),
    ],
)
def test_repetition_detection_ranges(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as refusal:
        RepetitionDetection(**fields)
    assert str(refusal.value).startswith(named)
