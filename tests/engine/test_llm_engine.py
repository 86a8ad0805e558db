"""Requests in, outputs out: over an executor of integers, so that every output is exact."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError, RequestError, StepFailed
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.llm_engine import LLMEngine, Prompt
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.sampling_params import BeamSearchParams, OutputKind, SamplingParams
from pagetwin.engine.step import StepPlan, StepResult
from pagetwin.engine.tokenizer import ByteTokenizer

VOCAB_SIZE = 257


class TickingClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def make_engine(
    *,
    num_blocks: int = 200,
    tokenizer: bool = True,
    vocab_size: int = VOCAB_SIZE,
    eos_token_ids: tuple[int, ...] = (256,),
    executor: type[FingerprintExecutor] = FingerprintExecutor,
    **scheduler: Any,
) -> LLMEngine:
    cache = CacheConfig(num_blocks=num_blocks, block_size=4)
    knobs: dict[str, Any] = {"max_model_len": 100, "max_num_seqs": 16, "max_num_batched_tokens": 64}
    return LLMEngine(
        EngineConfig(
            cache=cache, scheduler=SchedulerConfig(**(knobs | scheduler)), debug_invariants=True
        ),
        executor(cache, vocab_size=vocab_size),
        vocab_size=vocab_size,
        tokenizer=ByteTokenizer(vocab_size) if tokenizer else None,
        eos_token_ids=eos_token_ids,
        clock=TickingClock(),
    )


def run(engine: LLMEngine) -> dict[str, list[RequestOutput]]:
    """All outputs of each request, in order."""
    outputs: dict[str, list[RequestOutput]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def final(engine: LLMEngine) -> dict[str, RequestOutput]:
    return {request_id: some[-1] for request_id, some in run(engine).items()}


def alone(prompt: Prompt, params: SamplingParams, **knobs: Any) -> RequestOutput:
    """What the request gives in an engine of its own."""
    engine = make_engine()
    engine.add_request("alone", prompt, params, **knobs)
    return final(engine)["alone"]


KINDS: list[OutputKind] = ["cumulative", "delta", "final_only"]
REQUESTS = st.lists(
    st.tuples(
        st.text("ab", min_size=1, max_size=30),
        st.integers(1, 3),
        st.integers(1, 25),
        st.sampled_from(KINDS),
    ),
    min_size=1,
    max_size=6,
)


@given(REQUESTS, st.sampled_from([20, 40, 200]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_request_changes_another(
    requests: list[tuple[str, int, int, OutputKind]], num_blocks: int, is_async: bool
) -> None:
    engine = make_engine(num_blocks=num_blocks, async_scheduling=is_async)
    expected = {}
    for index, (prompt, n, max_tokens, kind) in enumerate(requests):
        params = SamplingParams(n=n, max_tokens=max_tokens, output_kind=kind)
        engine.add_request(f"r{index}", prompt, params)
        whole = SamplingParams(n=n, max_tokens=max_tokens, output_kind="final_only")
        expected[f"r{index}"] = alone(prompt, whole).outputs
    for request_id, outputs in run(engine).items():
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        for completion in expected[request_id]:
            parts = [c for o in outputs for c in o.outputs if c.index == completion.index]
            if requests[int(request_id[1:])][3] != "delta":
                parts = parts[-1:]
            assert "".join(part.text for part in parts) == completion.text
            assert tuple(t for part in parts for t in part.token_ids) == completion.token_ids
            assert parts[-1].finish_reason == completion.finish_reason
    assert engine.get_num_unfinished_requests() == 0
    assert engine.reset_prefix_cache()


def test_preemption_leaves_streams_as_they_are() -> None:
    engine = make_engine(num_blocks=20)
    for i in range(6):
        engine.add_request(f"r{i}", "prompt" + "ab"[i % 2], SamplingParams(n=2, max_tokens=20))
    outputs = final(engine)
    assert engine.core.scheduler.counters().preemptions_recompute > 0
    for i in range(6):
        params = SamplingParams(n=2, max_tokens=20)
        assert outputs[f"r{i}"].outputs == alone("prompt" + "ab"[i % 2], params).outputs


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_and_cuts_the_output(is_async: bool, include: bool) -> None:
    whole = alone("prompt", SamplingParams(max_tokens=20)).outputs[0]
    # Two characters that stand together nowhere before, wherever tokens begin and end.
    text = whole.text
    start = next(i for i in range(1, len(text) - 3) if text.index(text[i : i + 2]) == i)
    stop = text[start : start + 2]
    engine = make_engine(async_scheduling=is_async)
    params = SamplingParams(max_tokens=20, stop=(stop,), include_stop_str_in_output=include)
    engine.add_request("r", "prompt", params)
    engine.add_request("other", "prompt", SamplingParams(max_tokens=20))
    outputs = final(engine)
    [cut] = outputs["r"].outputs
    assert cut.text == text[: start + 2 * include]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert len(cut.token_ids) < len(whole.token_ids)
    assert outputs["other"].outputs[0].token_ids == whole.token_ids


def test_an_abort_in_the_middle_changes_no_other_request() -> None:
    for when in range(1, 8):
        engine = make_engine(num_blocks=30, max_num_batched_tokens=16)
        for name in ("a", "b", "c"):
            engine.add_request(name, "prompt " + name, SamplingParams(n=2, max_tokens=10))
        seen = {}
        for _ in range(when):
            seen.update({output.request_id: output for output in engine.step()})
        engine.abort_request(["b", "unknown"])
        outputs = seen | final(engine)
        assert {c.finish_reason for c in outputs["b"].outputs} == {"abort"}
        assert outputs["b"].finished
        for name in ("a", "c"):
            expected = alone("prompt " + name, SamplingParams(n=2, max_tokens=10))
            assert outputs[name].outputs == expected.outputs
        assert engine.reset_prefix_cache()


def test_only_requests_that_changed_have_outputs() -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add_request("a", "x", SamplingParams(max_tokens=3))
    engine.add_request("b", "y", SamplingParams(max_tokens=1))
    assert [output.request_id for output in engine.step()] == ["a"]
    assert engine.get_num_unfinished_requests() == 2
    assert list(final(engine)) == ["a", "b"]
    assert engine.step() == []


def test_a_live_id_is_refused_and_a_finished_one_may_return() -> None:
    engine = make_engine()
    params = SamplingParams(max_tokens=2)
    engine.add_request("r", "x", params)
    with pytest.raises(RequestError, match="'r' belongs to a request that is not finished"):
        engine.add_request("r", "y", params)
    first = final(engine)["r"]
    engine.add_request("r", "x", params)
    assert final(engine)["r"].outputs == first.outputs


REFUSALS: list[tuple[Prompt, dict[str, Any], dict[str, Any], str]] = [
    ([], {}, {}, "prompt"),
    ([1, 257], {}, {}, "prompt token 1 is 257"),
    ([1, -1], {}, {}, "prompt token 1 is -1"),
    ("x" * 100, {}, {}, "max_model_len"),
    ("x", {"max_tokens": 101}, {}, "max_tokens"),
    ("x", {"logprobs": 21}, {}, "max_logprobs=20"),
    ("x", {"stop_token_ids": [257]}, {}, "stop_token_ids"),
    ("x", {"n": 17}, {}, "max_num_seqs"),
    ("x", {"n": 2, "best_of": 3, "output_kind": "delta"}, {}, "cannot be streamed"),
    ("x", {}, {"priority": 1}, "priority=1 has no effect"),
    ("x", {"n": 3}, {"beam_search": BeamSearchParams(beam_width=2)}, "above beam_width=2"),
    ("x", {"stop": "y"}, {"beam_search": BeamSearchParams(beam_width=2)}, "stop"),
    ("x", {"structured_outputs": None, "extra_args": {"a": 1}}, {}, "extra_args"),
]


@pytest.mark.parametrize(("prompt", "params", "knobs", "message"), REFUSALS)
def test_a_refused_request_disturbs_nobody(
    prompt: Prompt, params: dict[str, Any], knobs: dict[str, Any], message: str
) -> None:
    engine = make_engine()
    engine.add_request("good", "x", SamplingParams(max_tokens=5))
    engine.step()
    with pytest.raises(RequestError, match=message):
        engine.add_request("bad", prompt, SamplingParams(**params), **knobs)
    assert engine.get_num_unfinished_requests() == 1
    assert list(outputs := final(engine)) == ["good"]
    assert outputs["good"].outputs == alone("x", SamplingParams(max_tokens=5)).outputs


def test_without_a_tokenizer_token_ids_still_work() -> None:
    engine = make_engine(tokenizer=False)
    engine.add_request("r", list(b"prompt"), SamplingParams(max_tokens=5))
    for params in ({"stop": "x"}, {"bad_words": ["x"]}):
        with pytest.raises(RequestError, match="needs a tokenizer"):
            engine.add_request("bad", [1], SamplingParams(**params))
    with pytest.raises(RequestError, match="has no tokenizer"):
        engine.add_request("bad", "text")
    with pytest.raises(RequestError, match="has no tokenizer"):
        engine.add_request("bad", [{"role": "user", "content": "text"}])
    output = final(engine)["r"]
    expected = alone("prompt", SamplingParams(max_tokens=5)).outputs[0]
    assert output.outputs[0].token_ids == expected.token_ids
    assert output.outputs[0].text == ""
    assert output.prompt is None


def test_a_chat_is_prompted_with_its_template() -> None:
    output = alone([{"role": "user", "content": "hi"}], SamplingParams(max_tokens=1))
    assert output.prompt == "user: hi\nassistant:"
    assert output.prompt_token_ids == tuple(b"user: hi\nassistant:")


@pytest.mark.parametrize(("limit", "kept"), [(None, 80), (5, 5), (-1, 80), (90, 80)])
def test_a_prompt_is_cut_at_its_beginning(limit: int | None, kept: int) -> None:
    text = "".join(chr(48 + i % 70) for i in range(80))
    output = alone(text, SamplingParams(max_tokens=1, truncate_prompt_tokens=limit))
    assert output.prompt_token_ids == tuple(text.encode()[-kept:])
    assert output.prompt == text


def test_as_much_of_a_long_prompt_is_kept_as_leaves_room_for_a_token() -> None:
    output = alone("x" * 500, SamplingParams(max_tokens=9, truncate_prompt_tokens=-1))
    assert len(output.prompt_token_ids) == 99
    assert len(output.outputs[0].token_ids) == 1


def test_bad_words_are_resolved_with_and_without_a_leading_space() -> None:
    class Recorder(FingerprintExecutor):
        bad_words: tuple[tuple[int, ...], ...] = ()

        def execute(self, plan: StepPlan) -> StepResult:
            for request in plan.new_requests:
                self.bad_words = request.bad_words_token_ids
            return super().execute(plan)

    cache = CacheConfig(num_blocks=10)
    executor = Recorder(cache, vocab_size=VOCAB_SIZE)
    scheduler = SchedulerConfig(max_model_len=50, max_num_seqs=4, max_num_batched_tokens=64)
    engine = LLMEngine(
        EngineConfig(cache=cache, scheduler=scheduler),
        executor,
        vocab_size=VOCAB_SIZE,
        tokenizer=ByteTokenizer(),
    )
    engine.add_request("r", "x", SamplingParams(max_tokens=1, bad_words=("ab", " c")))
    final(engine)
    assert executor.bad_words == (
        tuple(b"ab"),
        tuple(b" ab"),
        tuple(b" c"),
    )


def test_priorities_order_requests_where_the_policy_has_them() -> None:
    engine = make_engine(max_num_seqs=1, policy="priority")
    for name, priority in (("late", 2), ("soon", 1), ("first", 0)):
        engine.add_request(name, "x", SamplingParams(max_tokens=1), priority=priority)
    assert list(final(engine)) == ["first", "soon", "late"]


def test_a_salt_keeps_caches_apart() -> None:
    engine = make_engine()
    cached = {}
    for name, salt in (("a", None), ("b", None), ("c", "salt"), ("d", "salt")):
        params = SamplingParams(max_tokens=1)
        engine.add_request(name, "a prompt of some blocks", params, cache_salt=salt)
        cached[name] = final(engine)[name].num_cached_tokens
    assert cached["a"] == cached["c"] == 0
    assert cached["b"] == cached["d"] > 0


@pytest.mark.parametrize("num_blocks", [20, 200])
def test_beams_survive_preemption(num_blocks: int) -> None:
    """The executor's candidates are a function of the tokens, so the pool must not matter."""
    search = BeamSearchParams(beam_width=3, length_penalty=0.5)
    params = SamplingParams(n=3, max_tokens=12)
    engine = make_engine(num_blocks=num_blocks, vocab_size=64, eos_token_ids=(7,))
    for i in range(4):
        engine.add_request(f"r{i}", [i + 1, 2, 3, 4, 5], params, beam_search=search)
    outputs = final(engine)
    assert (engine.core.scheduler.counters().preemptions_recompute > 0) == (num_blocks == 20)
    for i in range(4):
        roomy = make_engine(vocab_size=64, eos_token_ids=(7,))
        roomy.add_request("r", [i + 1, 2, 3, 4, 5], params, beam_search=search)
        expected = final(roomy)["r"].outputs
        assert outputs[f"r{i}"].outputs == expected
        assert len(expected) == 3
        assert [c.score for c in expected] == sorted((c.score or 0 for c in expected), reverse=True)
    assert engine.reset_prefix_cache()


@pytest.mark.parametrize("search", [None, BeamSearchParams(beam_width=2)])
def test_a_request_that_fails_ends_alone_and_says_why(search: BeamSearchParams | None) -> None:
    class Failing(FingerprintExecutor):
        def execute(self, plan: StepPlan) -> StepResult:
            result = super().execute(plan)
            sampled, logprobs = dict(result.sampled), dict(result.logprobs)
            failed = {}
            if plan.step == 3:
                failed = {"bad/0": "its logits hold NaN"}
                sampled.pop("bad/0", None)
                logprobs.pop("bad/0", None)
            return replace(result, sampled=sampled, logprobs=logprobs, failed=failed)

    engine = make_engine(executor=Failing)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    engine.add_request("bad", "y", params, beam_search=search)
    engine.add_request("good", "x", params)
    outputs = final(engine)
    [bad] = outputs["bad"].outputs
    assert (bad.finish_reason, bad.stop_reason) == ("error", "its logits hold NaN")
    assert len(bad.token_ids) == 3
    assert outputs["good"].outputs == alone("x", params).outputs
    assert engine.reset_prefix_cache()


def test_an_aborted_beam_search_leaves_no_block_behind() -> None:
    engine = make_engine(vocab_size=64)
    engine.add_request("r", [1, 2, 3], beam_search=BeamSearchParams(beam_width=4))
    for _ in range(3):
        engine.step()
    engine.abort_request("r")
    [output] = engine.step()
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"
    assert engine.reset_prefix_cache()


def test_an_observer_sees_every_step_once_in_order() -> None:
    engine = make_engine()
    seen: list[int] = []
    engine.on_step = lambda completed: seen.append(completed.plan.step)
    engine.add_request("a", [1] * 70, SamplingParams(max_tokens=3, ignore_eos=True))
    run(engine)
    assert len(seen) >= 4
    assert seen == sorted(set(seen))


def test_a_configuration_without_a_model_is_refused() -> None:
    engine = make_engine()
    with pytest.raises(ConfigError, match=r"config\.model is None"):
        LLMEngine.from_config(engine.config)


class FailsOnce(FingerprintExecutor):
    """The third step cannot be carried out."""

    def execute(self, plan: StepPlan) -> StepResult:
        if plan.step == 2:
            self.follow(plan)
            raise StepFailed("out of memory; lower max_num_batched_tokens")
        return super().execute(plan)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_step_that_fails_ends_its_requests_with_an_error_and_no_other(
    async_scheduling: bool,
) -> None:
    sound, engine = (
        make_engine(executor=kind, async_scheduling=async_scheduling)
        for kind in (FingerprintExecutor, FailsOnce)
    )
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    for one in (sound, engine):
        one.add_request("hit", [1, 2, 3], params)
        for _ in range(4 if one is engine else 0):
            one.step()
        one.add_request("later", [1, 2, 3, 4], params)
    expected, outputs = run(sound), run(engine)
    assert outputs["later"][-1].outputs[0].token_ids == expected["later"][-1].outputs[0].token_ids
    assert outputs["later"][-1].outputs[0].finish_reason == "length"
    assert engine.get_num_unfinished_requests() == 0
    counters = engine.core.scheduler.counters()
    assert (counters.num_running, counters.aborts) == (0, 1)


def test_the_error_of_a_failed_step_reaches_the_client() -> None:
    engine = make_engine(executor=FailsOnce)
    engine.add_request("a", [1, 2, 3], SamplingParams(n=2, max_tokens=6, ignore_eos=True))
    last = run(engine)["a"][-1]
    assert last.finished
    assert [one.finish_reason for one in last.outputs] == ["error", "error"]
    assert all("out of memory" in str(one.stop_reason) for one in last.outputs)
    assert [len(one.token_ids) for one in last.outputs] == [2, 2]
