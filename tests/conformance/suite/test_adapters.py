"""Engine specs and adapters: each kind opens, is checked, and fails so that a person can act."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pagetwin.conformance.adapters.line_process import LineProcess
from pagetwin.conformance.adapters.protocol import (
    Adapter,
    AdapterError,
    EngineDied,
    EngineInfo,
    EngineTimeout,
    SessionConfig,
    SessionRefused,
    SteppingSession,
)
from pagetwin.conformance.adapters.spec import KINDS, make_adapter, parse_spec
from pagetwin.conformance.adapters.watchdog import watched
from pagetwin.conformance.adapters.without_model import WithoutModelAdapter
from pagetwin.conformance.capability import YES, Capabilities, Flag, Level, Support
from pagetwin.conformance.experiments.scenarios import play_and_judge
from pagetwin.conformance.observation import (
    AnyObservation,
    decode_observation,
    encode_observations,
    output_tokens,
    read_observations,
)
from pagetwin.conformance.scenario import load_scenario
from pagetwin.conformance.suite.adapter_check import Finding, check_adapter
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.trace import ResultRecord

SERVED = f"cmd:{sys.executable} -m pagetwin.conformance.adapters.serve fingerprint:"


def broken(findings: Sequence[Finding]) -> list[Finding]:
    return [one for one in findings if one.status == "broken"]


def run_some(adapter: Adapter) -> list[AnyObservation]:
    session = adapter.open(SessionConfig())
    for index in range(5):
        request = Request(
            request_id=f"r{index}",
            prompt_token_ids=tuple(range(index, index + 9)),
            sampling_params=SamplingParams(max_tokens=5 + index, ignore_eos=True, seed=1),
        )
        session.submit(request, cancel_after=2 if index == 3 else None)
    session.run(60)
    session.close()
    return list(session.observations())[1:]


@pytest.mark.parametrize("spec", ["fingerprint:", "sim:", SERVED])
def test_adapters_keep_what_they_claim(spec: str) -> None:
    adapter = make_adapter(spec)
    findings = list(check_adapter(adapter))
    adapter.close()
    adapter.close()
    assert not broken(findings)
    assert sum(one.status == "ok" for one in findings) > 10


def test_an_engine_behind_a_pipe_is_the_same_engine() -> None:
    here, there = make_adapter("fingerprint:"), make_adapter(SERVED)
    assert run_some(there) == run_some(here)
    there.close()


def test_engine_and_twin_give_the_same_tokens() -> None:
    assert run_some(make_adapter("fingerprint:")) == run_some(make_adapter("sim:"))


class Liar(WithoutModelAdapter):
    """Claims more than it has."""

    def __init__(self, *flags: Flag) -> None:
        super().__init__("liar", Scheduler)
        self._claims = dict.fromkeys(flags, YES)

    def capabilities(self) -> Capabilities:
        return Capabilities(super().capabilities().support | self._claims)


@pytest.mark.parametrize(
    "flag", [Flag.TEXT, Flag.CHOSEN_LOGPROB, Flag.TOPK_LOGPROB, Flag.PROMPT_LOGPROBS, Flag.SCORE]
)
def test_a_claim_that_is_not_kept_is_found(flag: Flag) -> None:
    lies = broken(list(check_adapter(Liar(flag))))
    assert [one.what for one in lies] == [flag.value]
    assert lies[0].detail


class Moody(WithoutModelAdapter):
    """Another answer each time it is asked what it is."""

    calls = 0

    def describe(self) -> EngineInfo:
        self.calls += 1
        return msgspec.structs.replace(super().describe(), version=str(self.calls))


def test_an_adapter_that_contradicts_itself_is_found() -> None:
    assert broken(list(check_adapter(Moody("moody", Scheduler))))


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("", "no kind"),
        ("fingerprint", "no kind"),
        ("vlllm:x", "'vlllm' is unknown"),
        ("fingerprint:x", "takes nothing"),
        ("sim:?seed=1", "takes nothing"),
        ("pagetwin:", "names no model"),
        ("pagetwin:random?{'a': 1}", "not JSON"),
        ("pagetwin:random?colour=red", "'colour'"),
        ("pagetwin:random?num_blocks=many", "num_blocks"),
        ("pagetwin:random?oops", "'oops'"),
        ("pagetwin:random?a=1&&b=2", "NAME=VALUE"),
        ("py:nothing", "names no factory"),
        ("py:no_such_module_here:make", "no_such_module_here"),
        ("py:json:no_such_factory", "no_such_factory"),
        ("py:json:dumps?nonsense=1", "cannot be called so"),
        ("py:collections:Counter", "has no describe"),
        ("cmd:", "names no program"),
        ("cmd:'", "quotes"),
        ("cmd:/no/such/program", "cannot be started"),
    ],
)
def test_a_spec_that_names_no_engine_says_what_to_do(spec: str, what: str) -> None:
    with pytest.raises(AdapterError, match=what):
        make_adapter(spec)


def test_specs_are_taken_apart() -> None:
    spec = parse_spec('pagetwin:/models/a?{"dtype": "float32", "num_blocks": 9}')
    assert (spec.kind, spec.target) == ("pagetwin", "/models/a")
    assert spec.options == {"dtype": "float32", "num_blocks": 9}
    assert parse_spec("pagetwin:a?num_blocks=9&seed=1").options == {"num_blocks": "9", "seed": "1"}
    assert parse_spec("cmd:./x --flag a?b={c}").target == "./x --flag a?b={c}"
    assert all(kind.form.startswith(name) for name, kind in KINDS.items())


def test_an_adapter_of_somebody_else_is_loaded_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_engine.py").write_text(
        "from pagetwin.conformance.adapters.without_model import WithoutModelAdapter\n"
        "from pagetwin.engine.scheduler import Scheduler\n"
        "def make(name='theirs'):\n    return WithoutModelAdapter(name, Scheduler)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert make_adapter("py:their_engine:make?name=mine").describe().name == "mine"


SCRIPTS: dict[str, tuple[str, type[AdapterError], str]] = {
    "dies at once": ("import sys; sys.exit('no model here')", EngineDied, "no model here"),
    "talks nonsense": ("print('hello'); print('{\"reply\": \"ok\"}')", AdapterError, "hello"),
    "says nothing": ('print(\'{"reply": "ok"}\')', AdapterError, "one line"),
    "refuses": (
        'print(\'{"reply": "error", "text": "no GPU"}\', flush=True); input()',
        AdapterError,
        "no GPU",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_program_that_is_no_adapter_is_explained(name: str, tmp_path: Path) -> None:
    script, kind, what = SCRIPTS[name]
    (tmp_path / "engine.py").write_text(script)
    with pytest.raises(kind, match=what):
        make_adapter(f"cmd:{sys.executable} {tmp_path / 'engine.py'}")


def test_what_a_program_said_before_it_ended_counts_whoever_is_faster() -> None:
    said = LineProcess([sys.executable, "-c", "print('all of it')"])
    said._child.wait()  # so that nobody listens when something is sent
    said.send({"do": "describe"})
    lines = said.lines(60)
    assert next(lines) == b"all of it"
    with pytest.raises(EngineDied, match="code 0"):
        next(lines)
    said.close()


HANGS = """
import json, sys, time
for line in sys.stdin:
    what = json.loads(line)["do"]
    if what == "describe":
        claims = {"token_ids": {"status": "yes"}}
        print(json.dumps({"info": {"name": "slow"}, "capabilities": claims}))
    if what == "run":
        time.sleep(60)
    print('{"reply": "ok"}', flush=True)
"""


def test_parameters_keyed_by_token_reach_an_engine_in_another_process() -> None:
    adapter = make_adapter(
        f"cmd:{sys.executable} -m pagetwin.conformance.adapters.serve "
        "pagetwin:random?num_layers=1&hidden_size=16&vocab_size=24"
    )
    session = adapter.open(SessionConfig())
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, logit_bias={7: 90.0})
    session.submit(Request(request_id="r", prompt_token_ids=(1, 2), sampling_params=params))
    session.run(60)
    adapter.close()
    assert output_tokens(session.observations())["r"][0] == [7, 7, 7]


def test_a_program_that_hangs_is_ended_by_the_watchdog(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(HANGS)
    adapter = make_adapter(f"cmd:{sys.executable} {tmp_path / 'engine.py'}")
    session = adapter.open(SessionConfig())
    session.submit(Request(request_id="r", prompt_token_ids=(1,)))
    with pytest.raises(EngineTimeout, match=r"0\.2 s"):
        session.run(0.2)
    with pytest.raises(EngineDied):
        session.run(0.2)
    adapter.close()


def never_return(seconds: float, who: str, first: Callable[[], None]) -> None:
    with watched(seconds, who):
        first()
        while True:
            pass


def test_a_body_that_does_not_return_is_interrupted_and_an_outer_watch_goes_on() -> None:
    inner: list[str] = []

    def hang_inside() -> None:
        try:
            never_return(0.05, "inner", lambda: None)
        except EngineTimeout as error:
            inner.append(str(error))

    with pytest.raises(EngineTimeout, match="outer"):
        never_return(0.3, "outer", hang_inside)
    assert inner
    assert inner[0].startswith("inner: did not return within 0.05 s")


def test_a_session_is_refused_what_its_engine_cannot_do() -> None:
    with pytest.raises(SessionRefused, match="has no model"):
        make_adapter("fingerprint:").open(SessionConfig(model="/x"))


def test_steps_can_be_taken_one_by_one() -> None:
    session = make_adapter("fingerprint:").open(SessionConfig())
    assert isinstance(session, SteppingSession)
    assert not session.start_step()
    assert not session.finish_step()
    session.submit(Request(request_id="r", prompt_token_ids=(1, 2, 3)))
    assert session.start_step()
    assert session.finish_step()
    assert output_tokens(session.observations())["r"][0]


def test_capabilities_say_why_and_how_far_one_sees() -> None:
    adapter = make_adapter("sim:")
    [(flag, reason)] = adapter.capabilities().missing([Flag.TOKEN_IDS, Flag.TEXT])
    assert flag == Flag.TEXT
    assert reason
    assert adapter.capabilities().level == Level.CONTROL
    assert Capabilities.of([Flag.TOKEN_IDS]).level == Level.TOKENS
    with pytest.raises(ValueError, match="needs a reason"):
        Support("no")


def test_observations_survive_their_file(tmp_path: Path) -> None:
    session = make_adapter("fingerprint:").open(SessionConfig())
    session.submit(Request(request_id="r", prompt_token_ids=(1, 2, 3)))
    session.run(10)
    path = tmp_path / "seen.jsonl"
    path.write_bytes(encode_observations(session.observations()))
    assert list(read_observations(path)) == list(session.observations())


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"{}", "not an observation"),
        (b'{"event":"token"', "not an observation"),
        (b'{"event":"opened","engine":"e","schema":"pagetwin.observations/9"}', "observations/9"),
    ],
)
def test_a_damaged_or_future_observation_is_named(line: bytes, what: str) -> None:
    with pytest.raises(TraceError, match=f"seen:3.*{what}"):
        decode_observation(line, "seen:3")


@pytest.fixture(scope="module")
def own() -> Any:
    adapter = make_adapter("pagetwin:random?num_layers=1&hidden_size=16&vocab_size=24")
    yield adapter
    adapter.close()


def test_our_engine_keeps_what_it_claims(own: Adapter) -> None:
    assert not broken(list(check_adapter(own)))


SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.json"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_what_once_ended_our_engine_ends_it_no_more(own: Adapter, path: Path) -> None:
    """Found by the suite on the random model; each file says what was wrong."""
    played = play_and_judge(load_scenario(path), own)
    assert played.violations == []
    assert any(isinstance(record, ResultRecord) for record in played.records)


def test_the_random_model_is_a_function_of_its_options(own: Adapter) -> None:
    other = make_adapter("pagetwin:random?num_layers=1&hidden_size=16&vocab_size=24")
    third = make_adapter("pagetwin:random?num_layers=1&hidden_size=16&vocab_size=24&seed=1")
    mine = run_some(own)
    assert run_some(other) == mine
    assert run_some(third) != mine
    other.close()
    third.close()
