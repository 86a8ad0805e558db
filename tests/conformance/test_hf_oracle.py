"""The Hugging Face oracle accepts what the reference would have said, and nothing else."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pagetwin.conformance.oracles.hf import GreedyOutput, HuggingFaceOracle, compare_greedy

PROMPTS = [[1, 5, 9, 3], [7, 7, 7], [2]]
MAX_TOKENS = 12


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceOracle:
    folder = tmp_path_factory.mktemp("llama")
    tiny_llama().save_pretrained(folder)
    return HuggingFaceOracle(folder)


def greedy(oracle: HuggingFaceOracle) -> list[GreedyOutput]:
    return [GreedyOutput(ids, oracle.greedy_tokens(ids, MAX_TOKENS)) for ids in PROMPTS]


def test_its_own_greedy_tokens_are_equal_at_every_position(oracle: HuggingFaceOracle) -> None:
    report = compare_greedy(oracle, greedy(oracle), max_tokens=MAX_TOKENS)
    assert report.tokens_compared == len(PROMPTS) * MAX_TOKENS
    assert (report.token_mismatches, report.near_ties) == (0, 0), report.explain()
    assert 0 < report.tau < report.smallest_margin


def test_generate_agrees_with_the_teacher_forced_choice(oracle: HuggingFaceOracle) -> None:
    for ids in PROMPTS:
        made = oracle.model.generate(  # type: ignore[operator]
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert made[0, len(ids) :].tolist() == oracle.greedy_tokens(ids, MAX_TOKENS)


def test_one_wrong_token_is_one_mismatch_and_the_comparison_goes_on(
    oracle: HuggingFaceOracle,
) -> None:
    prompt = PROMPTS[0]
    tokens = oracle.greedy_tokens(prompt, 4)
    tokens[-1] = int(oracle.scores(prompt, tokens[:-1])[-1].argmin())
    tokens += oracle.greedy_tokens([*prompt, *tokens], MAX_TOKENS - 4)
    report = compare_greedy(oracle, [GreedyOutput(prompt, tokens)], max_tokens=MAX_TOKENS)
    assert report.tokens_compared == MAX_TOKENS
    assert [(row.position, row.verdict) for row in report.rows] == [(3, "mismatch")]
    assert report.rows[0].gap > report.tau
    assert "prompt 0 position 3" in report.explain()


def test_a_tie_within_rounding_is_listed_as_a_near_tie(
    oracle: HuggingFaceOracle, tmp_path: Path
) -> None:
    prompt = PROMPTS[1]
    best = int(oracle.scores(prompt, []).argmax())
    other = (best + 1) % 61
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[other] = model.lm_head.weight[best]
    model.save_pretrained(tmp_path)
    # Two tokens with equal logits: the argmax takes the smaller, this engine the larger.
    output = GreedyOutput(prompt, [max(best, other)])
    report = compare_greedy(HuggingFaceOracle(tmp_path), [output], max_tokens=1)
    assert (report.near_ties, report.token_mismatches) == (1, 0), report.explain()
    assert report.rows[0].gap == 0.0


@pytest.mark.parametrize("length", [MAX_TOKENS - 1, MAX_TOKENS + 1])
def test_an_output_that_ends_too_early_or_too_late_is_a_mismatch(
    oracle: HuggingFaceOracle, length: int
) -> None:
    output = GreedyOutput(PROMPTS[0], oracle.greedy_tokens(PROMPTS[0], length))
    report = compare_greedy(oracle, [output], max_tokens=MAX_TOKENS)
    assert report.token_mismatches == 1
    missing = report.rows[0].engine_token is None
    assert missing == (length < MAX_TOKENS)


def test_an_output_ends_with_its_first_eos(oracle: HuggingFaceOracle) -> None:
    tokens = oracle.greedy_tokens(PROMPTS[0], MAX_TOKENS)
    eos = tokens[3]
    cut = oracle.greedy_tokens(PROMPTS[0], MAX_TOKENS, [eos])
    assert cut == tokens[: tokens.index(eos) + 1]
    for made, mismatches in ((cut, 0), (tokens, 1)):
        report = compare_greedy(
            oracle, [GreedyOutput(PROMPTS[0], made)], max_tokens=MAX_TOKENS, eos_token_ids=[eos]
        )
        assert report.token_mismatches == mismatches, report.explain()


def test_no_outputs_are_refused(oracle: HuggingFaceOracle) -> None:
    with pytest.raises(ValueError, match="no outputs"):
        compare_greedy(oracle, [], max_tokens=1)
