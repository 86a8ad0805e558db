"""Seconds to sample a batch over a vocabulary of real size, by what the rows ask for."""

from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from pagetwin.engine.noise import Draw, gumbel_noise
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import Sampler, SamplingRow
from pagetwin.engine.sampling_params import SamplingParams

VOCAB = 49152
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy-penalties": {"temperature": 0, "repetition_penalty": 1.1, "frequency_penalty": 0.5},
    "greedy-logprobs": {"temperature": 0, "logprobs": 5},
    "softmax": {},
    "top-k": {"top_k": 50},
    "top-p": {"temperature": 0.7, "top_p": 0.95},
    "min-p": {"min_p": 0.05},
}


def peaked_logits(num_rows: int) -> torch.Tensor:
    """Like a language model's: a bulk, and a few tokens well above it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, VOCAB, generator=generator) * 2
    logits[:, :32] += torch.linspace(18, 6, 32)
    return logits


@pytest.mark.parametrize("num_rows", [1, 8, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_sample(benchmark: BenchmarkFixture, kind: str, num_rows: int) -> None:
    params = SamplingParams(**KINDS[kind])
    rows = [
        SamplingRow(
            f"r{i}/0",
            Request(request_id=f"r{i}", prompt_token_ids=tuple(range(500)), sampling_params=params),
            0,
            list(range(100)),
        )
        for i in range(num_rows)
    ]
    output = benchmark(Sampler(VOCAB).sample, peaked_logits(num_rows), rows)
    assert len(output.sampled) == num_rows


@pytest.mark.parametrize("num_rows", [1, 8])
def test_noise(benchmark: BenchmarkFixture, num_rows: int) -> None:
    draws = [Draw(i, 0, 7, 0, 0) for i in range(num_rows)]
    noise = benchmark(gumbel_noise, draws, VOCAB, torch.device("cpu"))
    assert noise.shape == (num_rows, VOCAB)
