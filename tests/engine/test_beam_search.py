"""The beam search is that of transformers, token for token and bit for bit."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from pagetwin.engine.beam_search import BeamSearch, Hypothesis, num_candidates
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.step import TokenLogprobs

PROMPT = (1, 2, 3)


class TableModel(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """A model whose next logits are a row of a table, named by the last tokens and the length.

    Without floating-point work of its own it gives both searches the same bits.
    """

    def use_table(self, table: torch.Tensor) -> None:
        self.table = table

    def next_logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        row = 31 * len(token_ids) + 7 * token_ids[-1] + 3 * token_ids[-2]
        return self.table[row % len(self.table)]

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        logits = torch.stack([self.next_logits(row) for row in input_ids.tolist()])
        return CausalLMOutputWithPast(logits=logits[:, None, :])


def table_model(
    vocab_size: int, seed: int, eos: Sequence[int], eos_bias: float, *, sharpness: float = 1.0
) -> TableModel:
    """Random rows; a large `sharpness` makes most next tokens all but certain."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        pad_token_id=0,
    )
    model = TableModel(config)
    table = torch.randn(97, vocab_size, generator=torch.Generator().manual_seed(seed))
    table[:, list(eos)] += eos_bias
    model.use_table(table * sharpness)
    return model


def top(scores: torch.Tensor, count: int) -> TokenLogprobs:
    """The best `count` continuations, as a sampler reports them: none that is impossible."""
    best = scores.topk(min(count, len(scores)))
    pairs = [(int(i), float(x)) for i, x in zip(best.indices, best.values, strict=True)]
    pairs = [(i, x) for i, x in pairs if x != float("-inf")]
    return TokenLogprobs(
        token_ids=tuple(i for i, _ in pairs),
        logprobs=tuple(x for _, x in pairs),
        ranks=tuple(range(1, len(pairs) + 1)),
    )


def run(
    request: Request, next_scores: Callable[[tuple[int, ...]], torch.Tensor], max_tokens: int
) -> list[Hypothesis]:
    """A whole search, its beams kept here as an engine would keep them."""
    search = BeamSearch(request, max_tokens=max_tokens)
    beams: list[tuple[int, ...]] = [()]
    while True:
        order = list(range(len(beams)))
        random.Random(len(beams[0])).shuffle(order)
        for beam in order:
            assert search.select() is None
            search.report(beam, top(next_scores(beams[beam]), num_candidates(request)))
        selection = search.select()
        assert selection is not None
        if selection.finished:
            return search.best(request.sampling_params.n)
        pairs = zip(selection.parents, selection.token_ids, strict=True)
        beams = [(*beams[parent], token) for parent, token in pairs]


def of_transformers(model: Any, request: Request) -> list[tuple[tuple[int, ...], float]]:
    beam, params = request.beam_search, request.sampling_params
    assert beam is not None
    output = model.generate(
        torch.tensor([request.prompt_token_ids]),
        attention_mask=torch.ones(1, len(request.prompt_token_ids), dtype=torch.int64),
        do_sample=False,
        use_cache=False,
        num_beams=beam.beam_width,
        length_penalty=beam.length_penalty,
        early_stopping=beam.early_stopping,
        num_return_sequences=params.n,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens or None,
        eos_token_id=list(request.eos_token_ids) or None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    generated = output.sequences[:, len(request.prompt_token_ids) :].tolist()
    scores = output.sequences_scores.tolist()
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
    return [
        (tuple(ids[:length]), score)
        for ids, length, score in zip(generated, lengths, scores, strict=True)
    ]


def test_a_search_equals_that_of_transformers() -> None:
    rng = random.Random(0)
    num_stopped = num_shorter = num_early = 0
    for case in range(300):
        vocab_size = rng.choice([12, 30, 100])
        eos = tuple(rng.sample(range(4, vocab_size), rng.choice([0, 1, 1, 2])))
        width = rng.randint(2, vocab_size // (4 if len(eos) == 2 else 3) if vocab_size < 30 else 6)
        max_tokens = rng.randint(1, 14)
        eos_bias, sharpness = rng.choice([0.0, 1.0, 2.5]), rng.choice([1.0, 3.0, 6.0])
        model = table_model(vocab_size, case, eos, eos_bias, sharpness=sharpness)
        request = Request(
            request_id="r",
            prompt_token_ids=PROMPT,
            eos_token_ids=eos,
            sampling_params=SamplingParams(
                n=rng.randint(1, width),
                max_tokens=max_tokens,
                min_tokens=rng.choice([0, 0, min(3, max_tokens)]),
            ),
            beam_search=BeamSearchParams(
                beam_width=width,
                length_penalty=rng.choice([-1.0, -0.1, 0.0, 0.5, 1.0, 2.0]),
                early_stopping=rng.choice([False, True, "never"]),
            ),
        )

        def next_scores(
            output: tuple[int, ...],
            model: TableModel = model,
            request: Request = request,
        ) -> torch.Tensor:
            scores = torch.log_softmax(model.next_logits((*PROMPT, *output)), dim=-1)
            if len(output) < request.sampling_params.min_tokens:
                scores[list(request.eos_token_ids)] = float("-inf")
            return scores

        hypotheses = run(request, next_scores, max_tokens)
        ours = [(h.token_ids, h.score) for h in hypotheses]
        assert ours == of_transformers(model, request), f"case {case}"
        num_stopped += sum(h.finish_reason == "stop" for h in hypotheses)
        num_shorter += len({len(h.token_ids) for h in hypotheses}) > 1
        num_early += all(len(h.token_ids) < max_tokens for h in hypotheses)
    assert min(num_stopped, num_shorter, num_early) > 30


def request_of(width: int, *, n: int = 1, **params: Any) -> Request:
    return Request(
        request_id="r",
        prompt_token_ids=PROMPT,
        eos_token_ids=(9,),
        sampling_params=SamplingParams(n=n, **params),
        beam_search=BeamSearchParams(beam_width=width),
    )


def candidates(**logprobs: float) -> TokenLogprobs:
    """candidates(t4=-1.0) reports token 4."""
    return TokenLogprobs(
        token_ids=tuple(int(name[1:]) for name in logprobs),
        logprobs=tuple(logprobs.values()),
        ranks=tuple(range(1, len(logprobs) + 1)),
    )


def test_one_beam_that_stops_early_is_the_greedy_output() -> None:
    model = table_model(30, 5, (9,), 2.0)
    request = Request(
        request_id="r",
        prompt_token_ids=PROMPT,
        eos_token_ids=(9,),
        beam_search=BeamSearchParams(beam_width=1, early_stopping=True),
    )
    greedy: list[int] = []
    while len(greedy) < 20 and greedy[-1:] != [9]:
        greedy.append(int(model.next_logits((*PROMPT, *greedy)).argmax()))
    [best] = run(
        request, lambda out: torch.log_softmax(model.next_logits((*PROMPT, *out)), dim=-1), 20
    )
    assert best.token_ids == tuple(greedy)
    assert best.finish_reason == "stop"


def test_ties_go_to_the_smaller_beam_then_to_the_smaller_token() -> None:
    search = BeamSearch(request_of(2), max_tokens=5)
    search.report(0, candidates(t7=-1.0, t5=-1.0, t3=-1.0, t4=-2.0))
    selection = search.select()
    assert selection is not None
    assert (selection.parents, selection.token_ids) == ((0, 0), (3, 5))
    search.report(1, candidates(t2=-1.0, t1=-1.0, t3=-3.0, t4=-3.0))
    search.report(0, candidates(t8=-1.0, t6=-4.0, t3=-5.0, t4=-5.0))
    selection = search.select()
    assert selection is not None
    assert (selection.parents, selection.token_ids) == ((0, 1), (8, 1))


def test_a_preempted_beam_is_waited_for_again() -> None:
    search = BeamSearch(request_of(2), max_tokens=5)
    search.report(0, candidates(t1=-1.0, t2=-2.0, t3=-3.0, t4=-4.0))
    assert search.select() is not None
    search.report(0, candidates(t1=-1.0, t2=-2.0, t3=-3.0, t4=-4.0))
    search.forget(0)
    search.report(1, candidates(t1=-1.0, t2=-2.0, t3=-3.0, t4=-4.0))
    assert search.select() is None
    search.report(0, candidates(t1=-1.0, t2=-2.0, t3=-3.0, t4=-4.0))
    assert search.select() is not None


def test_impossible_beams_fill_places_and_are_never_returned() -> None:
    """Two allowed tokens and three beams: the third place has nothing to hold."""
    search = BeamSearch(request_of(3, n=3), max_tokens=2)
    search.report(0, candidates(t4=-1.0, t5=-2.0))
    selection = search.select()
    assert selection is not None
    assert len(selection.parents) == 3
    assert len(search.best(3)) == 2
    for beam in range(3):
        search.report(beam, candidates(t4=-1.0, t5=-2.0))
    selection = search.select()
    assert selection is not None
    assert selection.finished
    best = search.best(3)
    assert [h.token_ids for h in best] == [(4, 4), (4, 5), (5, 4)]
    assert [h.score for h in best] == pytest.approx([-1.0, -1.5, -1.5])


def test_a_search_whose_beams_can_only_end_is_over() -> None:
    search = BeamSearch(request_of(2), max_tokens=9)
    search.report(0, candidates(t9=-1.0))
    selection = search.select()
    assert selection is not None
    assert selection.finished
    assert [h.token_ids for h in search.best(2)] == [(9,)]


def test_a_beam_reports_enough_for_every_ending_token() -> None:
    assert num_candidates(request_of(4)) == 8
    assert num_candidates(request_of(4, stop_token_ids=(5, 6))) == 16
    assert num_candidates(request_of(4, ignore_eos=True)) == 8
