"""The sampling kernels draw the tokens that the torch sampler draws, row by row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagetwin.engine.device_sampler import DeviceSampler
from pagetwin.engine.logits import adjust
from pagetwin.engine.noise import Draw, gumbel_noise
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import Sampler, SamplingRow
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.kernels.sampling import Scratch, sample, sample_greedy, sample_op
from pagetwin.kernels.sampling_noise import (
    ROUGH_ERROR,
    gumbel,
    is_late,
    load_draw,
    noise_word,
    noise_words,
    rough_exponential,
)
from pagetwin.kernels.sampling_penalties import penalise

SEED = 3
UNTOUCHED = -7
GREEDY: dict[str, Any] = {"temperature": 0}
PENALTIES = {"repetition_penalty": 1.7, "frequency_penalty": 0.31, "presence_penalty": 0.9}
KINDS: list[dict[str, Any]] = [
    GREEDY,
    {},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"temperature": 2.0, "top_p": 0.05},
    {"top_p": 0.9, "seed": 2**63 - 1},
    {"temperature": 1.7, "min_p": 0.1},
    {"top_k": 3, "seed": -9},
    {"temperature": 1.3, "min_p": 0.01, "top_p": 0.5},
    {"temperature": 0.01},
    GREEDY | PENALTIES,
    PENALTIES | {"temperature": 1.5},
    {"frequency_penalty": -0.37, "top_k": 200, "min_p": 0.02, "top_p": 0.99},
    {"repetition_penalty": 0.7, "top_k": 1},
]
LIMITS = ("top_k", "top_p", "min_p")


def untouched(size: int, device: torch.device) -> Tensor:
    return torch.full((2, size), UNTOUCHED, dtype=torch.int32, device=device)


class Step:
    """A step of several sequences, with the tensors that the engine would give to the kernels."""

    def __init__(
        self, vocab: int, kinds: Sequence[dict[str, Any]], device: torch.device, *, length: int = 30
    ) -> None:
        size, random = len(kinds), np.random.default_rng(len(kinds))
        self.vocab, self.device = vocab, device
        self.table = torch.zeros(size, length + 10, dtype=torch.int32, device=device)
        self.sampler = DeviceSampler(vocab, size, device, seed=SEED)
        self.rows: list[SamplingRow] = []
        self.num_tokens = random.integers(2, length + 1, size)
        for i, kind in enumerate(kinds):
            # Few distinct tokens, so that they repeat, in the prompt and in the output.
            ids = random.integers(0, min(vocab, 12), self.num_tokens[i]).tolist()
            prompt, output = ids[: (len(ids) + 1) // 2], ids[(len(ids) + 1) // 2 :]
            self.table[i, : len(ids)] = torch.tensor(ids)
            params = SamplingParams(**kind)
            request = Request(
                request_id=f"r{i}", prompt_token_ids=tuple(prompt), sampling_params=params
            )
            self.rows.append(SamplingRow(f"r{i}/0", request, 0, output))
            self.sampler.add(i, self.rows[i])

    def words(self, padding: int = 0) -> Tensor:
        size = len(self.rows)
        words = np.zeros((self.sampler.num_words, size + padding), np.int32)
        self.sampler.fill(words, np.arange(size), self.num_tokens)
        return torch.from_numpy(words).to(self.device)

    def drawn(self, logits: Tensor, *, greedy_only: bool = False) -> tuple[list[int], list[int]]:
        """Each row's token, and whether it failed."""
        out, failed = untouched(len(self.rows), self.device)
        tensors = (logits.clone(), self.words(), self.table, out, failed)
        self.sampler.sample(*tensors, greedy_only=greedy_only)
        return out.tolist(), failed.tolist()

    def expected(self, logits: Tensor) -> list[int]:
        sampled = Sampler(self.vocab, seed=SEED).sample(logits, self.rows).sampled
        return [sampled.get(row.seq_id, 0) for row in self.rows]


def random_logits(step: Step, spread: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(len(step.rows), step.vocab, generator=generator) * spread).to(step.device)


@pytest.mark.parametrize("vocab", [7, 300, 5000])
def test_the_tokens_are_the_torch_samplers(device: torch.device, vocab: int) -> None:
    step = Step(vocab, KINDS, device)
    flat, steep = random_logits(step, 0.5), random_logits(step, 1.0, seed=4)
    steep[:, :5] += 2.0  # tokens of the history, which penalties touch, are likely
    for logits, fields in ((flat, LIMITS), (steep, PENALTIES)):
        tokens, failed = step.drawn(logits)
        assert tokens == step.expected(logits)
        assert failed == [0] * len(KINDS)
        written = step.table[torch.arange(len(KINDS)), torch.from_numpy(step.num_tokens)]
        assert written.tolist() == tokens
        others = [{k: v for k, v in kind.items() if k not in fields} for kind in KINDS]
        assert tokens != Step(vocab, others, device).expected(logits), f"{fields} changed nothing"
        assert tokens != logits.argmax(-1).tolist()


HALVES = st.integers(-6, 6).map(lambda i: i / 2)
REQUESTS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]), "seed": st.integers(0, 5)},
    optional={
        "top_k": st.integers(1, 12),
        "top_p": st.sampled_from([0.1, 0.5, 0.75, 0.9]),
        "min_p": st.sampled_from([0.05, 0.3, 1.0]),
        "repetition_penalty": st.sampled_from([0.5, 1.25]),
        "frequency_penalty": st.sampled_from([-0.5, 0.75]),
        "presence_penalty": st.sampled_from([-1.0, 0.25]),
    },
)


@given(REQUESTS, st.lists(HALVES, min_size=9, max_size=9), st.sets(st.integers(0, 8), max_size=4))
@settings(max_examples=25)
def test_ties_and_holes_are_treated_as_by_the_torch_sampler(
    device: torch.device, fields: dict[str, Any], values: list[float], holes: set[int]
) -> None:
    """Halves tie often, also at the limits."""
    step = Step(9, [fields], device)
    logits = torch.tensor([values], device=device)
    logits[0, sorted(holes)] = -torch.inf
    tokens, failed = step.drawn(logits)
    assert (tokens, failed) == (step.expected(logits), [0])
    assert tokens[0] not in holes
    event(f"{sorted(fields)}")


def test_all_tied_with_the_kth_token_can_be_drawn(device: torch.device) -> None:
    step = Step(300, [{"top_k": 2, "seed": seed} for seed in range(16)], device)
    logits = torch.full((16, 300), -2.0, device=device)
    logits[:, 10], logits[:, [3, 150, 299]] = 1.0, 0.5
    tokens, _ = step.drawn(logits)
    assert tokens == step.expected(logits)
    assert set(tokens) == {3, 10, 150, 299}


def test_of_equal_tokens_the_nucleus_holds_the_lowest(device: torch.device) -> None:
    step = Step(300, [{"top_p": 0.009, "seed": seed} for seed in range(12)], device)
    logits = torch.ones(12, 300, device=device)
    tokens, _ = step.drawn(logits)
    assert tokens == step.expected(logits)
    assert set(tokens) == {0, 1, 2}


@pytest.mark.parametrize("greedy_only", [False, True])
@pytest.mark.parametrize("vocab", [9, 9000])
def test_of_equal_logits_the_greedy_token_is_the_lowest(
    device: torch.device, vocab: int, greedy_only: bool
) -> None:
    step = Step(vocab, [GREEDY] * 4, device)
    logits = random_logits(step, 1.0)
    for row, places in enumerate([(0, vocab - 1), (5, 6), (vocab - 2, vocab - 1), (3, 8)]):
        logits[row, list(places)] = 9.0
    logits[3] = 0.0
    logits[3, 1::2] = -0.0
    assert step.drawn(logits, greedy_only=greedy_only) == ([0, 5, vocab - 2, 0], [0] * 4)


@pytest.mark.parametrize("greedy_only", [False, True])
def test_broken_rows_fail_alone(device: torch.device, greedy_only: bool) -> None:
    kinds = [GREEDY] * 7 if greedy_only else [GREEDY, {}, {"top_k": 5}, {"top_p": 0.5}, {}, {}, {}]
    step = Step(5000, kinds, device)
    sound = random_logits(step, 2.0)
    logits = sound.clone()
    nan = torch.tensor(torch.nan)
    logits[0, 4999], logits[1, 0], logits[2, 77], logits[3], logits[5, 9] = (
        nan,
        torch.inf,
        -nan,
        -torch.inf,
        -torch.inf,
    )
    tokens, failed = step.drawn(logits, greedy_only=greedy_only)
    assert failed == [1, 1, 1, 1, 0, 0, 0]
    assert tokens == step.expected(logits), "a broken row gets token 0"
    assert tokens[4:] == step.drawn(sound, greedy_only=greedy_only)[0][4:]


def test_a_row_gets_the_same_token_alone_and_in_any_order(device: torch.device) -> None:
    step = Step(5000, KINDS, device)
    logits = random_logits(step, 2.0)
    words, scratch = step.words(), Scratch.allocate(len(KINDS), 5000, device)
    together, _ = step.drawn(logits)
    order = np.random.default_rng(1).permutation(len(KINDS))
    for rows in (order, [4], [7]):
        out, failed = untouched(len(rows), device)
        some = words[:, torch.as_tensor(rows)].contiguous()
        sample(logits[rows].clone(), some, step.table, out, failed, scratch)
        assert out.tolist() == [together[row] for row in rows]


@pytest.mark.parametrize("greedy_only", [False, True])
def test_padding_rows_and_columns_are_not_looked_at(
    device: torch.device, greedy_only: bool
) -> None:
    step = Step(300, [GREEDY if greedy_only else KINDS[2], GREEDY], device)
    logits = torch.full((4, 352), torch.nan, device=device)
    logits[:2, :300] = random_logits(step, 2.0)
    before = step.table.clone()
    out, failed = untouched(4, device)
    scratch = Scratch.allocate(4, 300, device)
    draw = sample_greedy if greedy_only else sample
    draw(logits, step.words(padding=2), step.table, out, failed, scratch)
    tokens = step.expected(logits[:2])
    assert out.tolist() == [*tokens, UNTOUCHED, UNTOUCHED]
    assert failed.tolist() == [0, 0, UNTOUCHED, UNTOUCHED]
    for row, token in enumerate(tokens):
        before[row, step.num_tokens[row]] = token
    assert torch.equal(step.table, before)


def test_a_full_table_row_takes_no_token(device: torch.device) -> None:
    step = Step(300, [GREEDY, GREEDY], device)
    step.num_tokens[:] = step.table.shape[1]
    before = step.table.clone()
    tokens, _ = step.drawn(logits := random_logits(step, 1.0), greedy_only=True)
    assert tokens == logits.argmax(-1).tolist()
    assert torch.equal(step.table, before)


def test_samples_of_a_forking_group_draw_from_its_row_and_write_to_their_own(
    device: torch.device,
) -> None:
    step = Step(300, [{"n": 4, "repetition_penalty": 2.0}], device)
    prompt = step.rows[0].request.num_prompt_tokens
    words = np.zeros((step.sampler.num_words, 4), np.int32)
    step.sampler.fill(words, np.zeros(4, np.int64), np.full(4, prompt), np.arange(4))
    logits = random_logits(step, 0.5).repeat(4, 1)
    out, failed = untouched(4, device)
    before = step.table.clone()
    scratch = Scratch.allocate(4, 300, device)
    sample(logits.clone(), torch.from_numpy(words).to(device), step.table, out, failed, scratch)
    rows = [SamplingRow(f"r0/{i}", step.rows[0].request, i, ()) for i in range(4)]
    sampled = Sampler(300, seed=SEED).sample(logits, rows).sampled
    assert out.tolist() == list(sampled.values())
    assert len(set(out.tolist())) > 1
    before[0, prompt] = out[0]
    assert torch.equal(step.table, before)


@pytest.mark.parametrize("length", [30, 5000])
def test_penalised_logits_have_the_torch_samplers_bits(device: torch.device, length: int) -> None:
    kinds: list[dict[str, Any]] = [
        PENALTIES,
        {"repetition_penalty": 0.9},
        {"frequency_penalty": 0.1, "presence_penalty": -0.7},
        {"presence_penalty": 0.3},
        {},
    ]
    step = Step(40, kinds, device, length=length)
    step.rows[0].output_token_ids[:] = []  # type: ignore[index]
    step.num_tokens[0] = step.rows[0].request.num_prompt_tokens
    logits = random_logits(step, 3.0)
    expected, counts = logits.clone(), torch.zeros(5, 40, dtype=torch.int32, device=device)
    adjust(expected, step.rows)
    penalised = logits.clone()
    penalise(penalised, step.words(), step.table, counts)
    assert torch.equal(penalised, expected)
    assert not counts.any()
    assert (penalised != logits).any(-1).tolist() == [True, True, True, True, False]
    assert max(step.num_tokens) > 2048 or length < 5000, "a history longer than a tile"


@triton.jit
def noise_kernel(words_ptr, row_ptr, block_ptr, scores_ptr, single_ptr, N: tl.constexpr):
    """Words of N blocks from a row of parameters, and their noise."""
    draw = load_draw(row_ptr, 1)
    block = tl.load(block_ptr + tl.arange(0, N))
    words = noise_words(block, draw)
    index = tl.arange(0, 4 * N)
    tl.store(words_ptr + index, words.to(tl.int32, bitcast=True))
    tl.store(scores_ptr + index, gumbel(words))
    tl.store(single_ptr, noise_word(tl.load(block_ptr) * 4 + 2, draw).to(tl.int32, bitcast=True))


@triton.jit
def rough_kernel(words_ptr, rough_ptr, late_ptr, N: tl.constexpr):
    index = tl.arange(0, N)
    words = tl.load(words_ptr + index).to(tl.uint32, bitcast=True)
    tl.store(rough_ptr + index, rough_exponential(words))
    tl.store(late_ptr + index, is_late(words).to(tl.int32))


@pytest.mark.parametrize("seed", [0, -1, 2**40 + 5, -(2**63)])
def test_the_noise_is_the_torch_samplers(device: torch.device, seed: int) -> None:
    step = Step(8, [{"seed": seed}], device)
    words, single = torch.zeros(2, 64, dtype=torch.int32, device=device)
    scores = torch.zeros(64, dtype=torch.float64, device=device)
    block = torch.arange(16, dtype=torch.int32, device=device)
    noise_kernel[(1,)](words, step.words()[:, 0].contiguous(), block, scores, single, N=16)
    expected = gumbel_noise([Sampler(8, seed=SEED)._draw(step.rows[0])], 64, device)[0]
    torch.testing.assert_close(scores, expected, rtol=1e-14, atol=1e-14)
    assert single[0] == words[2]
    other = gumbel_noise([Draw(0, 0, 1, 0, 0)], 64, device)[0]
    assert not torch.isclose(scores, other).any()


def test_rough_noise_errs_by_no_more_than_is_allowed_for(device: torch.device) -> None:
    """On a GPU all 2**32 words have been tried once; here are the ends, the joint and some."""
    joints = np.array([0, 2**31, 2**32], np.int64)
    close = (joints[:, None] + np.arange(-200, 200)).ravel()
    spread = np.random.default_rng(0).integers(0, 2**32, 4096 - len(close))
    values = np.concatenate([close, spread]) % 2**32
    words = torch.from_numpy(values.astype(np.uint32).view(np.int32)).to(device)
    rough, late = torch.zeros(4096, device=device), torch.zeros_like(words)
    rough_kernel[(1,)](words, rough, late, N=4096)
    exact = -np.log((values + 0.5) * 2.0**-32)
    error = abs(rough.double().cpu().numpy() / np.where(values < 2**31, np.log(2), exact) - 1)
    assert 0 < error.max() <= ROUGH_ERROR.value
    assert late.tolist() == (exact > np.log(2)).tolist()


def test_the_operator_is_well_formed(device: torch.device) -> None:
    step = Step(9, [{}], device)
    out, failed = untouched(1, device)
    scratch = list(Scratch.allocate(1, 9, device))
    arguments = (random_logits(step, 1.0), step.words(), step.table, out, failed, scratch, False)
    torch.library.opcheck(sample_op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_unfit_tensors_are_refused(device: torch.device) -> None:
    step = Step(9, [{}, {}], device)
    logits, words = random_logits(step, 1.0), step.words()
    out, failed = untouched(2, device)
    scratch = Scratch.allocate(2, 9, device)
    for bad in (logits.half(), logits[:, ::2], logits[:, :8], logits.T.contiguous().T):
        with pytest.raises(ValueError, match="logits must be float32 with contiguous rows of at"):
            sample(bad, words, step.table, out, failed, scratch)
    with pytest.raises(ValueError, match="scratch memory for 1"):
        sample(logits, words, step.table, out, failed, Scratch.allocate(1, 9, device))
    for bad in (words[:, :1], words.long(), words.T.contiguous().T):
        with pytest.raises(ValueError, match="words must be int32"):
            sample(logits, bad, step.table, out, failed, scratch)
    for bad in (out.long(), out[:1], untouched(4, device)[0, ::2]):
        with pytest.raises(ValueError, match="out must be int32"):
            sample(logits, words, step.table, bad, failed, scratch)


@pytest.mark.gpu
@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("num_rows", [1, 64, 300])
def test_the_tokens_of_a_large_vocabulary_are_the_torch_samplers(
    device: torch.device, num_rows: int, spread: float
) -> None:
    """With logits rounded to bfloat16, which tie often."""
    step = Step(151_936, [KINDS[i % len(KINDS)] for i in range(num_rows)], device, length=900)
    logits = random_logits(step, spread).bfloat16().float()
    assert step.drawn(logits)[0] == step.expected(logits)


@pytest.mark.gpu
def test_a_captured_graph_draws_as_the_words_and_logits_say_at_its_replay(
    device: torch.device,
) -> None:
    step = Step(151_936, KINDS, device)
    logits, words, table = random_logits(step, 3.0), step.words(), step.table
    out, failed = untouched(len(KINDS), device)
    run = (logits.zero_(), words, table, out, failed)
    step.sampler.sample(*run, greedy_only=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.sampler.sample(*run, greedy_only=False)
    for seed in range(3):
        values = random_logits(step, 3.0, seed)
        logits.copy_(values)
        graph.replay()
        assert out.tolist() == step.expected(values)
