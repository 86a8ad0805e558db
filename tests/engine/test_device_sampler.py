"""What a batch's rows ask of the sampling kernels, and which steps these refuse.

That the kernels draw the torch sampler's tokens is in tests/kernels/test_sampling.py.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pagetwin.engine.device_sampler import DeviceSampler
from pagetwin.engine.noise import draw_for
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import SamplingRow
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.kernels import sampling_words as word

VOCAB = 40
PADDING = -1


def row_of(
    name: str = "r", index: int = 0, output: Sequence[int] = (), **fields: Any
) -> SamplingRow:
    request = Request(
        request_id=name,
        prompt_token_ids=(1, 2, 3),
        sampling_params=SamplingParams(**fields),
        eos_token_ids=(0,),
    )
    return SamplingRow(f"{name}/{index}", request, index, list(output))


def sampler_of(*rows: SamplingRow, seed: int = 5) -> DeviceSampler:
    sampler = DeviceSampler(VOCAB, len(rows), torch.device("cpu"), seed=seed)
    for i, row in enumerate(rows):
        sampler.add(i, row)
    return sampler


def words_of(
    sampler: DeviceSampler,
    rows: Sequence[int],
    num_tokens: Sequence[int],
    *,
    width: int = 0,
    **more: Any,
) -> NDArray[np.int32]:
    words = np.full((sampler.num_words, width or len(rows)), 99, np.int32)
    sampler.fill(words, np.array(rows, np.int64), np.array(num_tokens, np.int64), **more)
    return words


def double(words: NDArray[np.int32], index: Any) -> float:
    return float(words[index.value : index.value + 2].copy().view(np.float64)[0])


def rejection(row: SamplingRow) -> str | None:
    num_tokens = row.request.num_prompt_tokens + len(row.output_token_ids)
    return sampler_of(row).rejection(np.array([0]), np.array([num_tokens]))


@pytest.mark.parametrize(
    ("fields", "wish"),
    [
        ({"logprobs": 0}, "logprobs"),
        ({"logprob_token_ids": [3]}, "logprobs"),
        ({"n": 1, "best_of": 2}, "logprobs"),
        ({"logit_bias": {3: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [3]}, "allowed_token_ids"),
        ({"logit_bias": {3: 1.0}, "logprobs": 2}, "logprobs and logit_bias"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_by_name(fields: dict[str, Any], wish: str) -> None:
    assert rejection(row_of(**fields)) == f"request 'r' asks for {wish}"


def test_bad_words_and_beam_search_are_refused() -> None:
    row = row_of(bad_words=())
    banning = msgspec.structs.replace(row.request, bad_words_token_ids=((3,),))
    searching = msgspec.structs.replace(row.request, beam_search=BeamSearchParams(beam_width=2))
    for request, wish in ((banning, "bad_words"), (searching, "beam search")):
        refusal = rejection(SamplingRow("r/0", request, 0, []))
        assert refusal == f"request 'r' asks for {wish}"


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 4},
        {"repetition_penalty": 2.0, "frequency_penalty": 1.0, "presence_penalty": 1.0},
        {"n": 3},
        {"logit_bias": {}},
        {"min_tokens": 9, "ignore_eos": True},
    ],
)
def test_what_the_kernels_can_do_is_served(fields: dict[str, Any]) -> None:
    assert rejection(row_of(**fields)) is None


@pytest.mark.parametrize(
    ("wish", "fields"),
    [
        ("min_tokens", {"min_tokens": 2}),
        ("min_tokens", {"min_tokens": 2, "trace_decode_token_ids": [7]}),
        ("trace_decode_token_ids", {"trace_decode_token_ids": [7, 8]}),
    ],
)
def test_a_request_is_served_once_its_first_tokens_are_there(
    wish: str, fields: dict[str, Any]
) -> None:
    reasons = [rejection(row_of(output=[4] * length, **fields)) for length in range(4)]
    refused = f"{wish} shape the first 2 tokens of request 'r'"
    assert reasons == [refused, refused, None, None]


def test_a_step_is_refused_for_its_own_rows_only() -> None:
    sampler = sampler_of(row_of("a"), row_of("b", logprobs=1), row_of("c", min_tokens=5))
    ask = {
        (0,): None,
        (0, 1): "request 'b' asks for logprobs",
        (2, 0): "min_tokens shape the first 5 tokens of request 'c'",
        (): None,
    }
    for rows, reason in ask.items():
        index = np.array(rows, np.int64)
        assert sampler.rejection(index, np.full(len(rows), 4)) == reason
    sampler.remove(1)
    assert sampler.rejection(np.array([0, 1]), np.array([4, 4])) is None


def test_a_step_is_greedy_if_all_its_rows_are() -> None:
    greedy, penalised = row_of(temperature=0), row_of(temperature=0, presence_penalty=1.0)
    sampler = sampler_of(greedy, row_of(), penalised, greedy)
    assert sampler.is_greedy(np.array([0, 3]))
    assert sampler.is_greedy(np.array([], np.int64))
    assert not sampler.is_greedy(np.array([0, 1]))
    assert not sampler.is_greedy(np.array([2]))


def test_the_words_of_a_row_are_its_wishes() -> None:
    row = row_of(
        "name",
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.3,
        presence_penalty=-0.2,
    )
    sampler = sampler_of(row_of("other"), row)
    words = words_of(sampler, [1], [8])[:, 0]
    draw = draw_for(None, engine_seed=5, request_id="name", sample_index=0, position=8)
    named = (word.KEY_LOW, word.KEY_HIGH, word.NUM_TOKENS, word.SAMPLE_INDEX, word.STREAM)
    assert [int(words[w.value]) & 0xFFFFFFFF for w in named] == list(draw)
    assert [words[w.value] for w in (word.HISTORY_ROW, word.TABLE_ROW)] == [1, 1]
    assert [words[w.value] for w in (word.PROMPT_LEN, word.TOP_K)] == [3, 5]
    floats = words.view(np.float32)
    assert floats[word.TEMPERATURE.value] == np.float32(0.7)
    assert floats[word.REPETITION.value] == np.float32(1.1)
    assert double(words, word.LOG_MIN_P) == math.log(0.1)
    assert double(words, word.TOP_P) == 0.9
    assert double(words, word.FREQUENCY) == 0.3
    assert double(words, word.PRESENCE) == -0.2


def test_what_is_not_asked_for_is_off() -> None:
    words = words_of(sampler_of(row_of(top_k=VOCAB, seed=-2)), [0], [3])[:, 0]
    assert words[word.TOP_K.value] == 0, "a top_k of the whole vocabulary limits nothing"
    assert double(words, word.LOG_MIN_P) == -math.inf
    assert double(words, word.TOP_P) == 1.0
    assert [words[w.value] for w in (word.KEY_LOW, word.KEY_HIGH, word.STREAM)] == [-2, -1, 0]


def test_a_steps_rows_are_gathered_in_its_order_and_padded() -> None:
    sampler = sampler_of(*(row_of(f"r{i}", top_k=i + 1) for i in range(4)))
    words = words_of(sampler, [3, 0], [7, 9], width=4)
    assert words[word.TOP_K.value, :2].tolist() == [4, 1]
    assert words[word.NUM_TOKENS.value, :2].tolist() == [7, 9]
    assert words[word.HISTORY_ROW.value].tolist() == [3, 0, PADDING, PADDING]
    nobody = words_of(sampler, [], [], width=3)
    assert nobody[word.HISTORY_ROW.value].tolist() == [PADDING] * 3


def test_samples_of_a_forking_group_share_its_history_and_differ_in_their_draws() -> None:
    sampler = sampler_of(row_of("other"), row_of("group", n=3))
    words = words_of(sampler, [0, 1, 1, 1], [3] * 4, sample_indices=np.array([0, 0, 1, 2]))
    assert words[word.HISTORY_ROW.value].tolist() == [0, 1, 1, 1]
    assert words[word.TABLE_ROW.value].tolist() == [0, 1, PADDING, PADDING]
    assert words[word.SAMPLE_INDEX.value].tolist() == [0, 0, 1, 2]
    again = words_of(sampler, [1], [3])
    assert again[word.SAMPLE_INDEX.value] == 0, "the row's own words have not changed"


def test_a_row_that_is_added_again_is_written_anew() -> None:
    sampler = sampler_of(row_of("a", logprobs=1, top_p=0.5, presence_penalty=1.0))
    sampler.add(0, row_of("b", temperature=0))
    alone = np.array([0])
    assert sampler.rejection(alone, np.array([3])) is None
    assert sampler.is_greedy(alone)
    fresh = sampler_of(row_of("b", temperature=0))
    assert np.array_equal(words_of(sampler, [0], [3]), words_of(fresh, [0], [3]))
