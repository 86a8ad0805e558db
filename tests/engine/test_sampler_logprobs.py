"""Reported log-probabilities and ranks, by recount from the raw logits in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pagetwin.engine.errors import ModelError
from pagetwin.engine.logprobs import LOWEST_LOGPROB
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import Sampler, SamplingRow
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import TokenLogprobs
from pagetwin.engine.token_order import first_to_last, order_keys, token_ids

VOCAB = 12
LOGITS = st.lists(
    st.integers(-8, 8).map(lambda i: i / 4) | st.floats(-50, 50, width=32),
    min_size=VOCAB,
    max_size=VOCAB,
)
IDS = st.integers(0, VOCAB - 1)


def row_of(**fields: Any) -> SamplingRow:
    params = SamplingParams(**fields)
    return SamplingRow(
        "r/0", Request(request_id="r", prompt_token_ids=(1,), sampling_params=params), 0, [2, 2]
    )


def check_report(report: TokenLogprobs, values: list[float], chosen: int, asked: list[int]) -> None:
    """`asked`: the ids that must stand after the chosen one, in order."""
    logits: NDArray[np.float64] = np.array(values)
    normaliser = logits.max() + math.log(np.exp(logits - logits.max()).sum())
    assert report.token_ids == tuple(dict.fromkeys([chosen, *asked]))
    np.testing.assert_allclose(
        report.logprobs, logits[list(report.token_ids)] - normaliser, rtol=1e-5, atol=1e-5
    )
    first = sorted(range(VOCAB), key=lambda i: (-values[i], i))
    assert report.ranks == tuple(first.index(i) + 1 for i in report.token_ids)


@given(
    LOGITS,
    st.integers(-1, VOCAB + 2),
    st.none() | st.lists(IDS, min_size=1, max_size=4),
    st.sampled_from(
        [
            {"temperature": 0},
            {"temperature": 2},
            {"temperature": 0, "logit_bias": {3: 100}},
            {"allowed_token_ids": [0, 5], "frequency_penalty": 2.0},
            {"trace_decode_token_ids": [9, 9, 9]},
        ]
    ),
)
def test_logprobs_are_of_the_raw_logits_whatever_the_parameters(
    values: list[float], num_top: int, extra: list[int] | None, fields: dict[str, Any]
) -> None:
    output = Sampler(VOCAB).sample(
        torch.tensor([values]), [row_of(logprobs=num_top, logprob_token_ids=extra, **fields)]
    )
    first = sorted(range(VOCAB), key=lambda i: (-values[i], i))
    top = first if num_top == -1 else first[:num_top]
    chosen = output.sampled["r/0"]
    check_report(output.logprobs["r/0"], values, chosen, [*top, *(extra or [])])
    event(f"chosen among the top: {chosen in top}")


def test_nothing_is_reported_that_nobody_asked_for() -> None:
    logits = torch.zeros(1, VOCAB)
    assert Sampler(VOCAB).sample(logits, [row_of()]).logprobs == {}
    chosen_only = Sampler(VOCAB).sample(logits, [row_of(logprobs=0)])
    assert chosen_only.logprobs["r/0"].token_ids == (chosen_only.sampled["r/0"],)
    ranked = Sampler(VOCAB).sample(logits, [row_of(best_of=2)])
    assert len(ranked.logprobs["r/0"].token_ids) == 1


def test_a_greedy_token_has_rank_one_even_among_equals() -> None:
    logits = torch.zeros(1, VOCAB)
    output = Sampler(VOCAB).sample(logits, [row_of(temperature=0, logprobs=3)])
    report = output.logprobs["r/0"]
    assert (report.token_ids, report.ranks) == ((0, 1, 2), (1, 2, 3))


def test_a_token_of_probability_zero_has_a_finite_logprob() -> None:
    """JSON has no infinity: a history with one could not be read again."""
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, 4] = 1.0
    output = Sampler(VOCAB).sample(logits, [row_of(logprobs=2, trace_decode_token_ids=[9, 9, 9])])
    assert output.logprobs["r/0"].logprobs == (LOWEST_LOGPROB, 0.0, LOWEST_LOGPROB)


@given(st.lists(st.tuples(LOGITS, IDS), min_size=1, max_size=5), st.integers(-1, 4))
def test_prompt_logprobs_are_those_of_each_target(
    positions: list[tuple[list[float], int]], num_top: int
) -> None:
    logits = torch.tensor([values for values, _ in positions])
    targets = [target for _, target in positions]
    reports = Sampler(VOCAB).prompt_logprobs(logits, targets, num_top)
    assert len(reports) == len(positions)
    for report, (values, target) in zip(reports, positions, strict=True):
        first = sorted(range(VOCAB), key=lambda i: (-values[i], i))
        check_report(report, values, target, first if num_top == -1 else first[:num_top])


def test_long_prompts_are_reported_in_parts_with_the_same_bits() -> None:
    logits = torch.randn(200, VOCAB, generator=torch.Generator().manual_seed(0))
    targets = [i % VOCAB for i in range(200)]
    sampler = Sampler(VOCAB)
    whole = sampler.prompt_logprobs(logits, targets, 2)
    parts = [sampler.prompt_logprobs(logits[i : i + 1], [targets[i]], 2)[0] for i in range(200)]
    assert whole == tuple(parts)


def test_broken_prompt_logits_are_refused_by_row() -> None:
    logits = torch.zeros(70, VOCAB)
    logits[66, 3] = torch.nan
    with pytest.raises(ModelError, match="row 66 of 70"):
        Sampler(VOCAB).prompt_logprobs(logits, [0] * 70, 0)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30))
def test_keys_sort_as_tokens_stand(values: list[float]) -> None:
    values = [*values, -0.0, 0.0]
    keys = order_keys(torch.tensor([values]))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert token_ids(first_to_last(keys), len(values))[0].tolist() == expected
    assert keys.topk(len(values)).indices[0].tolist() == expected
