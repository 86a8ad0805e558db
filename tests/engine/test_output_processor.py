"""Whatever the stream's kind, interval and schedule, the same output is handed out."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pagetwin.engine.output_processor import OutputProcessor
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.step import (
    FinishedSequence,
    IntroducedSequence,
    Preemption,
    ScheduledSequence,
    StepPlan,
    StepResult,
    StepUpdate,
    TokenLogprobs,
)
from pagetwin.engine.tokenizer import ByteTokenizer

EOS = 256


def logprobs_of(token_id: int, logprob: float = -1.0) -> TokenLogprobs:
    return TokenLogprobs(token_ids=(token_id,), logprobs=(logprob,), ranks=(1,))


class Driver:
    """Feeds a processor what a scheduler and an executor would."""

    def __init__(self, *requests: Request, prompt: str | None = "p") -> None:
        self.processor = OutputProcessor(ByteTokenizer(), max_model_len=1000)
        self.step_number = 0
        self.new = requests
        for request in requests:
            self.processor.add_request(request, prompt)

    def step(
        self,
        tokens: Mapping[str, int],
        *,
        logprobs: Mapping[str, TokenLogprobs] | None = None,
        finished: Sequence[FinishedSequence] = (),
        preempted: Sequence[str] = (),
        scheduled: Sequence[str] | None = None,
        **result: Any,
    ) -> tuple[StepResult, list[RequestOutput]]:
        """One step; the stop strings found end their sequences."""
        rows = tuple(tokens) if scheduled is None else scheduled
        plan = StepPlan(
            step=self.step_number,
            scheduled=tuple(ScheduledSequence(s, 0, 1, samples=True) for s in rows),
            introduced=tuple(
                IntroducedSequence(
                    seq_id=sequence_id(request.request_id, 0),
                    request_id=request.request_id,
                    sample_index=0,
                    token_ids=(),
                    block_ids=(),
                    num_cached_tokens=7,
                )
                for request in self.new
            ),
            new_requests=tuple(self.new),
            preempted=tuple(Preemption(s, "recompute") for s in preempted),
        )
        self.step_number, self.new = self.step_number + 1, ()
        raw = StepResult(
            step=plan.step, sampled=dict(tokens), logprobs=dict(logprobs or {}), **result
        )
        processed = self.processor.process(plan, raw)
        stopped = [FinishedSequence(s, "stop", t) for s, t in processed.stop_strings.items()]
        ended = {f.seq_id for f in stopped}
        update = StepUpdate(
            step=plan.step,
            finished=(*stopped, *(f for f in finished if f.seq_id not in ended)),
        )
        return processed, self.processor.collect(update)


def play(request: Request, tokens: Sequence[int]) -> tuple[list[RequestOutput], int]:
    """All outputs of a one-sample request whose last token ends it by length, and the number of
    tokens that were taken."""
    driver = Driver(request)
    outputs: list[RequestOutput] = []
    for count, token in enumerate(tokens, start=1):
        last = [FinishedSequence("r/0", "length")] if count == len(tokens) else []
        outputs += driver.step({"r/0": token}, finished=last)[1]
        if outputs and outputs[-1].finished:
            assert len(driver.processor) == 0
            return outputs, count
    raise AssertionError("the request did not end")


def params_of(**fields: Any) -> Request:
    return Request(
        request_id="r",
        prompt_token_ids=(1, 2, 3),
        sampling_params=SamplingParams(**fields),
        eos_token_ids=(EOS,),
    )


TOKENS = st.lists(st.sampled_from([*b"abc", 0xE4, 0xB8, 0x96, 0xFF, 255]), min_size=1, max_size=30)


@given(
    TOKENS,
    st.lists(st.text("abc世", min_size=1, max_size=3), max_size=2),
    st.integers(1, 5),
    st.integers(0, 3),
)
@example([*b"ab", 0xE4, 0xB8, 0x96, *b"c"], ["b世"], 2, 0)
@example([*b"abab", 0xE4], ["ac"], 3, 0)
def test_joined_deltas_and_cumulative_and_final_outputs_agree(
    tokens: list[int], stops: list[str], interval: int, min_tokens: int
) -> None:
    common = {"stop": stops, "min_tokens": min_tokens, "max_tokens": None}
    outputs, count = play(params_of(output_kind="final_only", **common), tokens)
    [final] = outputs
    [expected] = final.outputs
    assert expected.token_ids == tuple(tokens[:count])
    whole = ByteTokenizer().decode(tokens[:count])
    if expected.finish_reason == "stop":
        assert isinstance(expected.stop_reason, str)
        assert whole.startswith(expected.text + expected.stop_reason)
    else:
        assert expected.text == whole

    streams, _ = play(params_of(output_kind="delta", stream_interval=interval, **common), tokens)
    deltas = [output.outputs[0] for output in streams]
    assert "".join(delta.text for delta in deltas) == expected.text
    assert tuple(t for delta in deltas for t in delta.token_ids) == expected.token_ids
    assert [d.finish_reason for d in deltas] == [None] * (len(deltas) - 1) + [
        expected.finish_reason
    ]
    assert len(deltas[0].token_ids) == 1, "the first token does not wait"
    assert all(len(delta.token_ids) == interval for delta in deltas[1:-1])

    growing, _ = play(
        params_of(output_kind="cumulative", stream_interval=interval, **common), tokens
    )
    assert growing[-1] == final
    for before, after in pairwise(growing):
        assert after.outputs[0].text.startswith(before.outputs[0].text)


def test_eos_is_a_token_but_no_text() -> None:
    driver = Driver(params_of(skip_special_tokens=False))
    driver.step({"r/0": ord("a")})
    [output] = driver.step({"r/0": EOS}, finished=[FinishedSequence("r/0", "stop")])[1]
    [completion] = output.outputs
    assert (completion.text, completion.token_ids) == ("a", (ord("a"), EOS))
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)


def test_ignored_eos_is_text_like_any_other() -> None:
    driver = Driver(params_of(skip_special_tokens=False, ignore_eos=True))
    driver.step({"r/0": EOS})
    [output] = driver.step({"r/0": ord("a")})[1]
    assert output.outputs[0].text == "<256>a"


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_tokens_text_is_there_only_if_asked_for(include: bool) -> None:
    driver = Driver(params_of(stop_token_ids=[ord("b")], include_stop_str_in_output=include))
    driver.step({"r/0": ord("a")})
    finished = [FinishedSequence("r/0", "stop", ord("b"))]
    [output] = driver.step({"r/0": ord("b")}, finished=finished)[1]
    assert output.outputs[0].text == ("ab" if include else "a")
    assert output.outputs[0].stop_reason == ord("b")


def test_a_stop_string_that_a_stop_token_would_complete_does_not_count() -> None:
    driver = Driver(params_of(stop=["ab"], stop_token_ids=[ord("b")]))
    driver.step({"r/0": ord("a")})
    result, _ = driver.step({"r/0": ord("b")}, finished=[FinishedSequence("r/0", "stop", 98)])
    assert result.stop_strings == {}


def test_the_first_min_tokens_tokens_stop_nothing() -> None:
    driver = Driver(params_of(stop=["b"], stop_token_ids=[ord("a")], min_tokens=2))
    driver.step({"r/0": ord("a")})
    result, _ = driver.step({"r/0": ord("b")})
    assert result.stop_strings == {}
    result, [output] = driver.step({"r/0": ord("b")})
    assert result.stop_strings == {"r/0": "b"}
    assert output.outputs[0].text == "ab"


def test_held_back_text_comes_with_an_abort() -> None:
    driver = Driver(params_of(stop=["abc"], output_kind="delta"))
    [first] = driver.step({"r/0": ord("a")})[1]
    assert first.outputs[0].text == ""
    output = driver.processor.abort("r")
    assert output is not None
    assert output.finished
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("a", "abort")
    assert driver.processor.abort("r") is None


def test_samples_end_each_on_its_own() -> None:
    driver = Driver(params_of(n=2, output_kind="delta"))
    [both] = driver.step({"r/0": ord("a"), "r/1": ord("b")})[1]
    assert [c.index for c in both.outputs] == [0, 1]
    [one] = driver.step(
        {"r/0": ord("c"), "r/1": ord("d")}, finished=[FinishedSequence("r/0", "length")]
    )[1]
    assert [c.finish_reason for c in one.outputs] == ["length", None]
    assert not one.finished
    # A late row of the sample that has ended changes nothing.
    [last] = driver.step(
        {"r/0": ord("x"), "r/1": ord("e")}, finished=[FinishedSequence("r/1", "length")]
    )[1]
    assert [(c.index, c.text) for c in last.outputs] == [(1, "e")]
    assert last.finished


def test_the_best_samples_are_returned_best_first() -> None:
    driver = Driver(params_of(n=2, best_of=3))
    tokens = {"r/0": ord("a"), "r/1": ord("b"), "r/2": ord("c")}
    chances = {"r/0": -2.0, "r/1": -3.0, "r/2": -1.0}
    logprobs = {s: logprobs_of(tokens[s], chances[s]) for s in tokens}
    assert driver.step(tokens, logprobs=logprobs)[1] == []
    finished = [FinishedSequence(s, "length") for s in tokens]
    [output] = driver.step(tokens, logprobs=logprobs, finished=finished)[1]
    assert [(c.index, c.text, c.cumulative_logprob) for c in output.outputs] == [
        (0, "cc", -2.0),
        (1, "aa", -4.0),
    ]


@pytest.mark.parametrize("kind", ["delta", "cumulative"])
def test_logprobs_follow_their_tokens(kind: str) -> None:
    driver = Driver(params_of(logprobs=0, output_kind=kind))
    first = driver.step({"r/0": 97}, logprobs={"r/0": logprobs_of(97, -1.0)})[1][0].outputs[0]
    second = driver.step({"r/0": 98}, logprobs={"r/0": logprobs_of(98, -2.0)})[1][0].outputs[0]
    assert first.logprobs == (logprobs_of(97, -1.0),)
    assert second.logprobs is not None
    assert len(second.logprobs) == len(second.token_ids) == (1 if kind == "delta" else 2)
    assert second.logprobs[-1] == logprobs_of(98, -2.0)
    assert second.cumulative_logprob == -3.0


def test_no_logprobs_are_shown_that_nobody_asked_for() -> None:
    [output] = Driver(params_of()).step({"r/0": 97})[1]
    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None


def test_prompt_logprobs_come_once_in_a_stream_and_start_with_none() -> None:
    driver = Driver(params_of(prompt_logprobs=0, output_kind="delta"))
    entries = (logprobs_of(2), logprobs_of(3))
    [first] = driver.step({"r/0": 97}, prompt_logprobs={"r/0": entries})[1]
    assert first.prompt_logprobs == (None, *entries)
    [second] = driver.step({"r/0": 98})[1]
    assert second.prompt_logprobs is None


def test_the_first_admission_tells_the_cached_tokens() -> None:
    driver = Driver(params_of())
    [output] = driver.step({"r/0": 97})[1]
    assert output.num_cached_tokens == 7


def test_rows_of_a_predecessor_of_the_same_name_are_not_taken() -> None:
    driver = Driver(params_of())
    driver.step({"r/0": 97})
    driver.processor.abort("r")
    driver.processor.add_request(params_of(), "p")
    assert driver.step({"r/0": 98})[1] == []
    driver.new = (params_of(),)
    [output] = driver.step({"r/0": 99})[1]
    assert output.outputs[0].text == "c"


def beam_request() -> Request:
    return Request(
        request_id="r",
        prompt_token_ids=(1, 2, 3),
        sampling_params=SamplingParams(n=2, max_tokens=2),
        beam_search=BeamSearchParams(beam_width=2),
        eos_token_ids=(EOS,),
    )


CANDIDATES = TokenLogprobs(
    token_ids=(97, 98, 99, 100), logprobs=(-1.0, -1.5, -3.0, -4.0), ranks=(1, 2, 3, 4)
)


def test_a_selection_waits_for_every_beam_and_for_the_preempted_one_again() -> None:
    driver = Driver(beam_request())
    result, _ = driver.step({}, scheduled=["r/0"], logprobs={"r/0": CANDIDATES})
    [selection] = result.selections
    assert (selection.parents, selection.token_ids) == ((0, 0), (97, 98))
    result, _ = driver.step({}, scheduled=["r/0"], logprobs={"r/0": CANDIDATES})
    assert result.selections == ()
    result, _ = driver.step({}, scheduled=["r/1"], logprobs={"r/1": CANDIDATES}, preempted=["r/0"])
    assert result.selections == ()
    result, _ = driver.step({}, scheduled=["r/0"], logprobs={"r/0": CANDIDATES})
    [selection] = result.selections
    assert selection.finished


def test_hypotheses_are_handed_out_once_with_text_and_scores() -> None:
    driver = Driver(beam_request())
    beams = {"r/0": CANDIDATES}
    assert driver.step({}, scheduled=["r/0"], logprobs=beams)[1] == []
    beams["r/1"] = CANDIDATES
    ended = [FinishedSequence("r/0", "stop"), FinishedSequence("r/1", "stop")]
    [output] = driver.step({}, scheduled=["r/0", "r/1"], logprobs=beams, finished=ended)[1]
    assert output.finished
    assert [(c.text, c.score, c.cumulative_logprob) for c in output.outputs] == [
        ("aa", -1.0, -2.0),
        ("ab", -1.25, -2.5),
    ]
    assert all(c.finish_reason == "length" for c in output.outputs)


def test_an_aborted_search_shows_its_beams_so_far() -> None:
    driver = Driver(beam_request())
    driver.step({}, scheduled=["r/0"], logprobs={"r/0": CANDIDATES})
    output = driver.processor.abort("r")
    assert output is not None
    assert [(c.text, c.finish_reason) for c in output.outputs] == [("a", "abort"), ("b", "abort")]
