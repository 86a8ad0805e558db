"""Servers over HTTP: what they honour is found out, and what they do wrong is told."""

from collections import Counter

import pytest
from tests.conformance.adapters.http.conftest import CACHE_BLOCK, MODEL, OFFSET, Behaviour, serving

from pagetwin.conformance.adapters.http import HttpAdapter, make
from pagetwin.conformance.adapters.protocol import (
    AdapterError,
    EngineDied,
    EngineTimeout,
    SessionConfig,
    SessionRefused,
)
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.provenance import ProvenanceExperiment
from pagetwin.conformance.observation import (
    AnyObservation,
    Failed,
    Refused,
    TokenSeen,
    output_tokens,
)
from pagetwin.conformance.provenance.checkpoint import write_checkpoint
from pagetwin.conformance.provenance.recipe import ProvenanceRecipe
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.config import CacheConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams


def _request(request_id: str, *, length: int = 20, max_tokens: int = 6) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=2)
    prompt = tuple(range(100, 100 + length))
    return Request(request_id=request_id, prompt_token_ids=prompt, sampling_params=params)


def _run(url: str, *requests: Request, timeout_s: float = 20.0) -> list[AnyObservation]:
    session = make(url, {"timeout_s": 5}).open(SessionConfig())
    for request in requests:
        session.submit(request)
    session.run(timeout_s)
    return list(session.observations())


def _kinds(observed: list[AnyObservation]) -> Counter[str]:
    return Counter(type(one).__name__ for one in observed)


def test_a_server_that_knows_everything_is_found_to() -> None:
    with serving(Behaviour()) as url:
        adapter = make(url, {"model": MODEL})
    can = adapter.capabilities()
    assert adapter.describe().block_size == CACHE_BLOCK
    over_http = set(Flag) - {flag for flag in Flag if can.of_flag(flag).status == "no"}
    assert over_http == {
        Flag.TEXT,
        Flag.CANCEL,
        Flag.TOKEN_PROMPT,
        Flag.TOKEN_IDS,
        Flag.STOP_TOKENS,
        Flag.STOP_STRINGS,
        Flag.SHOWN_STOP_STRINGS,
        Flag.IGNORE_EOS,
        Flag.CACHE_SALT,
        Flag.PRIORITY,
        Flag.TEMPERATURE,
        Flag.SEED,
        Flag.SAMPLES,
        Flag.CHOSEN_LOGPROB,
        Flag.TOPK_LOGPROB,
        Flag.CACHED_TOKEN_COUNT,
        Flag.PREFIX_CACHE,
    }


@pytest.mark.parametrize(
    ("parameter", "flag"),
    [
        ("return_token_ids", Flag.TOKEN_IDS),
        ("stop_token_ids", Flag.STOP_TOKENS),
        ("stop", Flag.STOP_STRINGS),
        ("include_stop_str_in_output", Flag.SHOWN_STOP_STRINGS),
        ("ignore_eos", Flag.IGNORE_EOS),
        ("cache_salt", Flag.CACHE_SALT),
        ("priority", Flag.PRIORITY),
        ("n", Flag.SAMPLES),
        ("logprobs", Flag.CHOSEN_LOGPROB),
        ("return_tokens_as_token_ids", Flag.TOPK_LOGPROB),
    ],
)
def test_an_ignored_parameter_is_a_no_with_its_reason(parameter: str, flag: Flag) -> None:
    with serving(Behaviour(ignored=(parameter,))) as url:
        support = make(url, {}).capabilities().of_flag(flag)
    assert support.status == "no"
    assert support.reason != "the adapter does not claim it"


def test_sure_models_leave_seeds_open() -> None:
    with serving(Behaviour(ignored=("seed",))) as url:
        can = make(url, {}).capabilities()
    assert can.of_flag(Flag.SEED).status == "conditional"


def test_requests_run_together_and_are_seen_whole() -> None:
    with serving(Behaviour()) as url:
        observed = _run(url, *(_request(f"r{i}", length=20 + i) for i in range(12)))
    outputs = output_tokens(observed)
    for i in range(12):
        last = 100 + 20 + i - 1
        assert outputs[f"r{i}"][0] == [last - OFFSET + k for k in range(6)]
    assert _kinds(observed)["Finished"] == 12
    tops = [one.top for one in observed if isinstance(one, TokenSeen)]
    assert all(len(top) == 2 for top in tops)


def test_a_client_that_hangs_up_sees_nothing_more() -> None:
    with serving(Behaviour()) as url:
        session = make(url, {}).open(SessionConfig())
        session.submit(_request("r0", max_tokens=50), cancel_after=3)
        session.submit(_request("r1"), cancel_after=0)
        session.submit(_request("r2"))
        session.cancel("r2")
        session.run(20)
    assert {r: len(s[0]) for r, s in output_tokens(session.observations()).items()} == {"r0": 3}
    assert _kinds(list(session.observations()))["Cancelled"] == 3


def test_refusals_and_nonsense_are_observed() -> None:
    with serving(Behaviour(refuses_length=700)) as url:
        observed = _run(url, _request("long", length=701), _request("short"))
    [refused] = [one for one in observed if isinstance(one, Refused)]
    assert refused.error == "400: 701 tokens are too many"
    with serving(Behaviour(garbles=True)) as url:
        observed = _run(url, _request("r0"))
    [failed] = [one for one in observed if isinstance(one, Failed)]
    assert "not JSON" in failed.error


def test_a_stream_that_just_ends_is_no_completion() -> None:
    with serving(Behaviour(breaks_off_after=2)) as url:
        observed = _run(url, _request("r0"))
    [failed] = [one for one in observed if isinstance(one, Failed)]
    assert failed.error == "the stream ended without [DONE]"


def test_a_server_that_hangs_is_left() -> None:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        session = make(url, {"timeout_s": 30}).open(SessionConfig())
        behaviour.hangs_from = len(behaviour.bodies) + 1
        session.submit(_request("r0"))
        session.submit(_request("r1"))
        with pytest.raises(EngineTimeout, match=r"still running after 0\.5 s"):
            session.run(0.5)
        assert _kinds(list(session.observations()))["Finished"] == 1


def test_a_silent_stream_is_left_before_the_time_is_up() -> None:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        session = make(url, {"timeout_s": 0.5}).open(SessionConfig())
        behaviour.hangs_from = 0
        session.submit(_request("r0"))
        with pytest.raises(EngineTimeout, match=r"silent for 0\.5 s"):
            session.run(60)


def test_a_server_that_went_away_is_told() -> None:
    with serving(Behaviour()) as url:
        session = make(url, {}).open(SessionConfig())
    session.submit(_request("r0"))
    with pytest.raises(EngineDied, match="the connection broke"):
        session.run(20)
    with pytest.raises(AdapterError, match="cannot be reached"):
        make(url, {})


@pytest.mark.parametrize(
    ("behaviour", "options", "message"),
    [
        (Behaviour(), {"model": "other"}, "model 'other' is not served; there are"),
        (Behaviour(models=[]), {}, "is not served; there are"),
        (Behaviour(hangs_from=0), {"timeout_s": "0.3"}, r"no answer within 0\.3 s"),
        (Behaviour(), {"modell": "x"}, "option 'modell' of 'http:' is unknown"),
        (Behaviour(), {"checkpoint": "/nowhere"}, r"/nowhere/config\.json: not a model's config"),
    ],
)
def test_what_cannot_be_judged_is_explained(
    behaviour: Behaviour, options: dict[str, str], message: str
) -> None:
    with serving(behaviour) as url, pytest.raises(AdapterError, match=message):
        make(url, options)


def test_a_running_server_takes_no_configuration() -> None:
    with serving(Behaviour()) as url:
        adapter = make(url, {})
        with pytest.raises(SessionRefused, match="cannot change"):
            adapter.open(SessionConfig(cache=CacheConfig(num_blocks=9)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("served") / "checkpoint"
    return str(write_checkpoint(ProvenanceRecipe(offset=OFFSET), folder))


def _adapter(url: str, checkpoint: str) -> HttpAdapter:
    return make(url, {"checkpoint": checkpoint})


def test_provenance_is_judged_over_http(checkpoint: str) -> None:
    with serving(Behaviour()) as url:
        adapter = _adapter(url, checkpoint)
        [evidence] = ProvenanceExperiment().run(adapter, Budget(60, max_examples=1), seed=1)
    assert evidence.violation is None
    assert min(evidence.goals[goal] for goal in evidence.goals if goal.startswith("reads")) > 0


def test_a_server_that_reads_another_request_is_caught(checkpoint: str) -> None:
    with serving(Behaviour(leaks=True)) as url:
        adapter = _adapter(url, checkpoint)
        [evidence] = ProvenanceExperiment().run(adapter, Budget(60, max_examples=1), seed=1)
    assert evidence.violation is not None
    assert "read the slot of (req" in evidence.violation.message
