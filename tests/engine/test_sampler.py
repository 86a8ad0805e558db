"""Which token a row gets, and that nothing but the row itself decides it."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from pagetwin.engine.noise import draw_for, gumbel_noise
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import Sampler, SamplerOutput, SamplingRow
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams

VOCAB = 40
KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "logprobs": 3},
    {},
    {"temperature": 0.7, "seed": 5},
    {"top_k": 5, "temperature": 1.3},
    {"top_p": 0.8, "logprobs": 0},
    {"min_p": 0.2, "seed": 6, "logprobs": 2},
    {"top_k": 1, "logprob_token_ids": [3, 4]},
    {"temperature": 0, "repetition_penalty": 1.5, "frequency_penalty": 0.5},
    {"presence_penalty": 1.0, "logit_bias": {3: 4.0}},
    {"allowed_token_ids": [1, 2, 30], "logprobs": 4},
    {"temperature": 0, "min_tokens": 4, "stop_token_ids": [0, 1, 2, 3]},
    {"trace_decode_token_ids": [7, 8, 9, 10, 11, 12], "logprobs": 1},
]


def row_of(name: str, output: Sequence[int] = (), *, index: int = 0, **fields: Any) -> SamplingRow:
    request = Request(
        request_id=name,
        prompt_token_ids=(1, 2),
        sampling_params=SamplingParams(**fields),
        eos_token_ids=(0,),
    )
    return SamplingRow(f"{name}/{index}", request, index, list(output))


def beam_of(name: str, width: int, output: Sequence[int] = (), **fields: Any) -> SamplingRow:
    row = row_of(name, output, **fields)
    request = msgspec.structs.replace(row.request, beam_search=BeamSearchParams(beam_width=width))
    return SamplingRow(row.seq_id, request, 0, list(output))


def logits_of(seed: int, num_rows: int, vocab_size: int = VOCAB) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2


def merged(outputs: Sequence[SamplerOutput]) -> SamplerOutput:
    whole = SamplerOutput()
    for output in outputs:
        whole.sampled.update(output.sampled)
        whole.logprobs.update(output.logprobs)
        whole.invalid.update(output.invalid)
    return whole


KINDS_OF_ROWS = st.lists(st.sampled_from(range(len(KINDS) + 1)), min_size=1, max_size=8)


@given(KINDS_OF_ROWS, st.integers(0, 1000), st.data())
def test_a_row_gets_the_same_bits_alone_in_any_batch_and_in_any_order(
    kinds: list[int], seed: int, data: st.DataObject
) -> None:
    logits, sampler = logits_of(seed, len(kinds)), Sampler(VOCAB, seed=seed)
    rows = [
        row_of(f"r{i}", [3, 3, 5][: i % 4], **KINDS[kind])
        if kind < len(KINDS)
        else beam_of(f"r{i}", 2, [3])
        for i, kind in enumerate(kinds)
    ]
    together = sampler.sample(logits, rows)
    assert not together.invalid
    alone = [sampler.sample(logits[i : i + 1], [row]) for i, row in enumerate(rows)]
    assert merged(alone) == together
    order = data.draw(st.permutations(range(len(rows))))
    assert sampler.sample(logits[order], [rows[i] for i in order]) == together
    event(f"{len(set(kinds))} kinds")


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 16])
def test_large_rows_have_the_same_bits_in_batches_of_every_size(num_rows: int) -> None:
    """Wide enough for torch to split a reduction among threads, where it does so."""
    vocab_size = 49152
    logits, sampler = logits_of(1, num_rows, vocab_size), Sampler(vocab_size)
    kinds: list[dict[str, Any]] = [
        {"logprobs": 5},
        {"logprobs": 5, "temperature": 0},
        {"top_p": 0.9, "logprobs": 1},
    ]
    rows = [row_of(f"r{i}", **kinds[i % 3]) for i in range(num_rows)]
    together = sampler.sample(logits, rows)
    alone = [sampler.sample(logits[i : i + 1], [row]) for i, row in enumerate(rows)]
    assert merged(alone) == together


def test_strided_and_padded_logits_give_the_same_bits() -> None:
    rows = [row_of(f"r{i}", [3], **kind) for i, kind in enumerate(KINDS)]
    logits, sampler = logits_of(3, len(rows)), Sampler(VOCAB)
    expected = sampler.sample(logits, rows)
    transposed = logits.T.contiguous().T
    padded = torch.full((len(rows), VOCAB + 24), torch.inf)
    padded[:, :VOCAB] = logits
    every_other = logits.repeat_interleave(2, dim=1)[:, ::2]
    for other in (transposed, padded, every_other):
        assert sampler.sample(other, rows) == expected
    kept = [sampler.prompt_logprobs(x, range(len(rows)), 2) for x in (logits, transposed, padded)]
    assert kept[0] == kept[1] == kept[2]


def test_the_callers_logits_do_not_change() -> None:
    rows = [row_of(f"r{i}", [3], **kind) for i, kind in enumerate(KINDS)] + [beam_of("b", 2, [3])]
    logits = logits_of(4, len(rows))
    before = logits.clone()
    Sampler(VOCAB).sample(logits, rows)
    assert torch.equal(logits, before)


def test_greedy_takes_the_lowest_id_of_equal_logits() -> None:
    vocab_size = 50_000
    logits = torch.zeros(4, vocab_size)
    places = [(49_999,), (7, 8), (20_000, 45_000), (0, 31, 32, 33)]
    for i, place in enumerate(places):
        logits[i, list(place)] = 1.0
    plain = [row_of(f"r{i}", temperature=0) for i in range(4)]
    biased = [row_of(f"r{i}", temperature=0, logit_bias={9: -1.0}) for i in range(4)]
    for rows in (plain, biased):
        sampled = Sampler(vocab_size).sample(logits, rows).sampled
        assert list(sampled.values()) == [place[0] for place in places]


@pytest.mark.parametrize("vocab_size", [40, 4096])
def test_the_choice_is_the_largest_of_logit_over_temperature_plus_noise(vocab_size: int) -> None:
    """The coupling that lets a checker with the same noise judge every draw."""
    logits, sampler = logits_of(5, 60, vocab_size), Sampler(vocab_size, seed=9)
    for fields in ({}, {"temperature": 0.5}, {"top_k": 3, "temperature": 1.5}):
        rows = [row_of(f"r{i}", [4] * (i % 3), index=i % 2, **fields) for i in range(60)]
        keys = [
            draw_for(
                None,
                engine_seed=9,
                request_id=row.request.request_id,
                sample_index=row.sample_index,
                position=2 + len(row.output_token_ids),
            )
            for row in rows
        ]
        noise = gumbel_noise(keys, vocab_size, logits.device)
        scores = logits.double() / rows[0].request.sampling_params.temperature
        if "top_k" in fields:
            scores[logits < logits.topk(3).values[:, -1:]] = -torch.inf
        expected = (scores + noise).argmax(dim=-1).tolist()
        sampled = list(sampler.sample(logits, rows).sampled.values())
        assert sampled == expected
        assert sampled != logits.argmax(dim=-1).tolist()


def draws(*, seed: int | None, name: str, index: int = 0, engine_seed: int = 0) -> list[int]:
    """Tokens at 40 consecutive positions of one sequence, from one distribution."""
    rows = [row_of(name, [5] * i, index=index, seed=seed) for i in range(40)]
    sampler = Sampler(VOCAB, seed=engine_seed)
    logits = logits_of(8, 1)
    return [next(iter(sampler.sample(logits, [row]).sampled.values())) for row in rows]


def test_a_seed_decides_and_without_one_the_name_does() -> None:
    seeded = draws(seed=3, name="a")
    assert seeded == draws(seed=3, name="b") == draws(seed=3, name="a", engine_seed=1)
    assert seeded != draws(seed=4, name="a")
    assert seeded != draws(seed=3, name="a", index=1)
    unseeded = draws(seed=None, name="a")
    assert unseeded == draws(seed=None, name="a")
    assert unseeded != draws(seed=None, name="b")
    assert unseeded != draws(seed=None, name="a", engine_seed=1)
    assert len(set(unseeded)) > 5


def test_samples_of_a_fork_draw_apart_from_the_same_logits() -> None:
    logits = logits_of(8, 1).expand(16, -1)
    rows = [row_of("r", index=i, n=16) for i in range(16)]
    output = Sampler(VOCAB).sample(logits, rows)
    assert len(output.sampled) == 16
    assert len(set(output.sampled.values())) > 3


@given(st.integers(0, 1000), st.integers(0, 12))
def test_a_seeded_request_that_is_cut_and_resubmitted_goes_on_alike(seed: int, cut: int) -> None:
    """The position counts from the start of the prompt, so the noise of what follows is kept."""
    params = SamplingParams(seed=seed)
    prompt, output, sampler = (1, 2, 3), tuple(range(12)), Sampler(VOCAB)
    whole = Request(request_id="a", prompt_token_ids=prompt, sampling_params=params)
    rest = Request(
        request_id="b", prompt_token_ids=(*prompt, *output[:cut]), sampling_params=params
    )
    first = sampler.sample(logits_of(seed, 1), [SamplingRow("a/0", whole, 0, output)])
    second = sampler.sample(logits_of(seed, 1), [SamplingRow("b/0", rest, 0, output[cut:])])
    assert first.sampled["a/0"] == second.sampled["b/0"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("token", [0, 20, VOCAB - 1])
def test_a_broken_row_is_named_and_the_others_are_as_without_it(bad: float, token: int) -> None:
    rows = [row_of(f"r{i}", [3], **kind) for i, kind in enumerate(KINDS)] + [beam_of("b", 2, [3])]
    logits, sampler = logits_of(11, len(rows)), Sampler(VOCAB)
    expected = sampler.sample(logits, rows)
    assert not expected.invalid
    for i, row in enumerate(rows):
        broken = logits.clone()
        broken[i, token] = bad
        output = sampler.sample(broken, rows)
        assert list(output.invalid) == [row.seq_id]
        assert "NaN" in output.invalid[row.seq_id]
        assert output.sampled == {k: v for k, v in expected.sampled.items() if k != row.seq_id}
        assert output.logprobs == {k: v for k, v in expected.logprobs.items() if k != row.seq_id}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_masks_leave_nothing_is_named(temperature: float) -> None:
    fields: dict[str, Any] = {"temperature": temperature, "logprobs": 1}
    stuck = row_of("stuck", allowed_token_ids=[0], min_tokens=1, **fields)
    output = Sampler(VOCAB).sample(logits_of(2, 2), [stuck, row_of("free", **fields)])
    assert list(output.invalid) == ["stuck/0"]
    assert "leave no token" in output.invalid["stuck/0"]
    assert list(output.sampled) == list(output.logprobs) == ["free/0"]


@given(st.integers(0, 200), st.sampled_from(KINDS), st.integers(0, 8))
def test_a_token_is_within_the_vocabulary_and_its_masks(
    seed: int, fields: dict[str, Any], num_output: int
) -> None:
    output = [5] * num_output
    result = Sampler(VOCAB).sample(logits_of(seed, 1, VOCAB + 3), [row_of("r", output, **fields)])
    token = result.sampled["r/0"]
    assert 0 <= token < VOCAB
    if "allowed_token_ids" in fields:
        assert token in fields["allowed_token_ids"]
    if num_output < fields.get("min_tokens", 0):
        assert token not in (0, *fields["stop_token_ids"])


def test_forced_tokens_are_taken_in_turn_and_then_the_choice_is_free() -> None:
    logits, sampler = logits_of(12, 1), Sampler(VOCAB)
    free = sampler.sample(logits, [row_of("r", [7, 8], temperature=0)]).sampled["r/0"]
    tokens = [
        sampler.sample(
            logits, [row_of("r", [7, 8][:i], temperature=0, trace_decode_token_ids=[7, 8])]
        ).sampled["r/0"]
        for i in range(3)
    ]
    assert tokens == [7, 8, free]
    assert free not in (7, 8)


def test_no_rows_give_an_empty_output() -> None:
    assert Sampler(VOCAB).sample(torch.empty(0, VOCAB), []) == SamplerOutput()


@pytest.mark.parametrize("width", [1, 3, 30])
def test_a_beam_gets_its_best_continuations_and_no_token(width: int) -> None:
    logits = logits_of(13, 1)
    output = Sampler(VOCAB).sample(logits, [beam_of("b", width, stop_token_ids=[4])])
    assert output.sampled == {}
    candidates = output.logprobs["b/0"]
    count = min(VOCAB, 3 * width)  # one EOS, one stop token
    expected = torch.log_softmax(logits[0], dim=-1).sort(descending=True, stable=True)
    assert candidates.token_ids == tuple(expected.indices[:count].tolist())
    assert candidates.logprobs == tuple(expected.values[:count].tolist())
    assert candidates.ranks == tuple(range(1, count + 1))


def test_processors_of_a_beam_work_on_log_probabilities_without_renormalising() -> None:
    logits = logits_of(14, 1)
    fields = {"repetition_penalty": 1.5, "min_tokens": 5, "temperature": 0}
    row = beam_of("b", 20, [3, 9], **fields)
    candidates = Sampler(VOCAB).sample(logits, [row]).logprobs["b/0"]
    expected = torch.log_softmax(logits[0], dim=-1)
    expected[[1, 2, 3, 9]] *= 1.5
    expected[0] = -torch.inf
    assert len(candidates.token_ids) == VOCAB - 1
    assert 0 not in candidates.token_ids
    np.testing.assert_allclose(
        candidates.logprobs, expected[list(candidates.token_ids)].numpy(), rtol=1e-6
    )
    assert list(candidates.logprobs) == sorted(candidates.logprobs, reverse=True)
