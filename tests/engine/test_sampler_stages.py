"""Each processor against a plain float64 reference that follows the documented order."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pagetwin.conformance.oracles.sampling import adjusted_logits
from pagetwin.engine.logits import adjust, adjusts, truncate
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import SamplingRow
from pagetwin.engine.sampling_params import SamplingParams

Array = NDArray[np.float64]
VOCAB = 9
IDS = st.integers(0, VOCAB - 1)
# Halves tie often, and survive float32 division without new ties.
HALVES = st.lists(st.integers(-12, 12).map(lambda i: i / 2), min_size=VOCAB, max_size=VOCAB)


def row_of(
    params: SamplingParams, *, prompt: Sequence[int] = (0,), output: Sequence[int] = (), **more: Any
) -> SamplingRow:
    request = Request(
        request_id="r", prompt_token_ids=tuple(prompt), sampling_params=params, **more
    )
    return SamplingRow("r/0", request, 0, list(output))


ADJUSTING = st.fixed_dictionaries(
    {},
    optional={
        "allowed_token_ids": st.lists(IDS, min_size=1, max_size=VOCAB),
        "min_tokens": st.integers(0, 4),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.lists(IDS, max_size=2),
        "logit_bias": st.dictionaries(IDS, st.floats(-5, 5, width=32)),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.25, 3.0]),
        "frequency_penalty": st.sampled_from([-0.5, 0.0, 0.75]),
        "presence_penalty": st.sampled_from([-1.0, 0.0, 0.25]),
    },
)
ADJUSTED_ROWS = st.builds(
    lambda fields, prompt, output, bad, eos: row_of(
        SamplingParams(**fields),
        prompt=prompt,
        output=output,
        bad_words_token_ids=tuple(map(tuple, bad)),
        eos_token_ids=tuple(eos),
    ),
    ADJUSTING,
    st.lists(IDS, min_size=1, max_size=5),
    st.lists(IDS, max_size=5),
    st.lists(st.lists(IDS, min_size=1, max_size=3), max_size=3),
    st.lists(IDS, max_size=2),
)


@given(st.lists(st.tuples(HALVES, ADJUSTED_ROWS), min_size=1, max_size=4))
def test_processors_equal_the_reference_row_by_row(
    batch: list[tuple[list[float], SamplingRow]],
) -> None:
    """Also that masks and penalties touch only their own rows."""
    rows = [row for _, row in batch]
    logits = torch.tensor([values for values, _ in batch])
    before = logits.clone()
    adjust(logits, rows)
    for i, (values, row) in enumerate(batch):
        expected = adjusted_logits(np.array(values), row.request, row.output_token_ids)
        np.testing.assert_allclose(logits[i].double().numpy(), expected, rtol=1e-5, atol=1e-5)
        if not adjusts(row):
            assert torch.equal(logits[i], before[i])
        event(f"adjusts: {adjusts(row)}")


def reference_support(logits: Array, params: SamplingParams) -> set[int]:
    """The tokens that may be drawn; rejects examples whose mass is within rounding of a limit."""
    scaled = logits / params.temperature
    kept = {i for i in range(VOCAB) if scaled[i] > -math.inf}
    peak = max(scaled)
    if params.min_p:
        relative = {i: math.exp(scaled[i] - peak) for i in kept}
        assume(all(abs(p - params.min_p) > 1e-6 or p == 1.0 for p in relative.values()))
        kept = {i for i in kept if relative[i] >= params.min_p}
    if params.top_k:
        kept = {i for i in kept if sum(scaled[j] > scaled[i] for j in kept) < params.top_k}
    if params.top_p < 1:
        total = sum(math.exp(scaled[i] - peak) for i in kept)
        mass, first = 0.0, sorted(kept, key=lambda i: (-scaled[i], i))
        kept = set()
        for i in first:
            assume(not kept or abs(mass - params.top_p) > 1e-6)
            if kept and mass >= params.top_p:
                break
            kept.add(i)
            mass += math.exp(scaled[i] - peak) / total
    return kept


TRUNCATING = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0])},
    optional={
        "min_p": st.floats(0, 1),
        "top_k": st.integers(0, VOCAB + 2),
        "top_p": st.floats(0.01, 1),
    },
)
MASKED_HALVES = st.tuples(HALVES, st.sets(st.integers(1, VOCAB - 1))).map(
    lambda pair: [-math.inf if i in pair[1] else v for i, v in enumerate(pair[0])]
)


@given(st.lists(st.tuples(MASKED_HALVES, TRUNCATING), min_size=1, max_size=4))
def test_the_support_is_exact_ties_included(
    batch: list[tuple[list[float], dict[str, Any]]],
) -> None:
    rows = [row_of(SamplingParams(**fields)) for _, fields in batch]
    logits = torch.tensor([values for values, _ in batch])
    truncate(logits, rows)
    for i, (values, _) in enumerate(batch):
        params = rows[i].request.sampling_params
        expected = reference_support(np.array(values), params)
        assert set(torch.isfinite(logits[i]).nonzero().flatten().tolist()) == expected
        kept = sorted(expected)
        np.testing.assert_allclose(
            logits[i, kept].numpy(), np.array(values)[kept] / params.temperature, rtol=1e-6
        )
        event(f"kept {len(expected)} of {VOCAB}")


def support(values: list[float], **fields: Any) -> list[int]:
    logits = torch.tensor([values])
    truncate(logits, [row_of(SamplingParams(**fields))])
    return [i for i, kept in enumerate(torch.isfinite(logits[0]).tolist()) if kept]


def test_top_k_keeps_ties_with_the_last() -> None:
    assert support([1.0, 3.0, 2.0, 2.0, 0.0], top_k=2) == [1, 2, 3]


def test_top_p_includes_the_token_that_crosses_and_breaks_ties_by_id() -> None:
    assert support([0.0, 0.0, 0.0, 0.0], top_p=0.5) == [0, 1]
    assert support([0.0, 0.0, 0.0, 0.0], top_p=0.51) == [0, 1, 2]
    assert support([0.0, 9.0, 0.0, 0.0], top_p=1e-9) == [1]
    assert support([-0.0, 0.0], top_p=0.4) == [0]


def test_min_p_of_one_keeps_the_most_likely_tokens() -> None:
    assert support([2.0, 1.0, 2.0], min_p=1.0) == [0, 2]


def test_top_p_of_a_flat_large_vocabulary_is_exact() -> None:
    assert len(support([0.0] * 4096, top_p=0.75)) == 3072


def test_stages_run_in_order_temperature_first_and_top_p_last() -> None:
    """Of [8, 7, 6] min_p=0.3 keeps two at T=1 and three at T=2; top_p sees what top_k left."""
    assert support([8.0, 7.0, 6.0], min_p=0.3) == [0, 1]
    assert support([8.0, 7.0, 6.0], min_p=0.3, temperature=2.0) == [0, 1, 2]
    assert support([8.0, 7.0, 7.0, 6.0], top_p=0.7) == [0, 1]
    assert support([8.0, 7.0, 7.0, 6.0], top_p=0.7, top_k=1) == [0]


def test_stages_equal_those_of_transformers_where_nothing_ties() -> None:
    values = torch.randn(8, 500, generator=torch.Generator().manual_seed(0)) * 3
    seen: Any = torch.arange(40).reshape(8, 5)
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"temperature": 0.7}, TemperatureLogitsWarper(0.7)),
        ({"top_k": 17}, TopKLogitsWarper(17)),
        ({"top_p": 0.83}, TopPLogitsWarper(0.83)),
        ({"min_p": 0.07}, MinPLogitsWarper(0.07)),
    ]
    for fields, theirs in cases:
        logits = values.clone()
        truncate(logits, [row_of(SamplingParams(**fields))] * 8)
        torch.testing.assert_close(logits, theirs(seen, values.clone()))
    logits = values.clone()
    params = SamplingParams(repetition_penalty=1.3)
    adjust(logits, [row_of(params, prompt=row[:3], output=row[3:]) for row in seen.tolist()])
    torch.testing.assert_close(logits, RepetitionPenaltyLogitsProcessor(1.3)(seen, values.clone()))


def test_a_bad_word_may_begin_in_the_prompt() -> None:
    row = row_of(SamplingParams(), prompt=[5, 1], output=[2], bad_words_token_ids=((1, 2, 3),))
    logits = torch.zeros(1, VOCAB)
    adjust(logits, [row])
    assert (logits[0] == -torch.inf).nonzero().flatten().tolist() == [3]


def test_min_tokens_masks_until_exactly_that_many_tokens() -> None:
    params = SamplingParams(min_tokens=2, stop_token_ids=(4,))
    for num_output, masked in ((0, [4, 7]), (1, [4, 7]), (2, [])):
        logits = torch.zeros(1, VOCAB)
        adjust(logits, [row_of(params, output=[1] * num_output, eos_token_ids=(7,))])
        assert (logits[0] == -torch.inf).nonzero().flatten().tolist() == masked
