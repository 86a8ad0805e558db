"""The fixed workloads of `pagetwin bench offline`: token ids and output lengths, from seeds.

Other engines are measured on the same lists, token for token, so nothing here may change: not an
order of draws, not a default. tests/conformance/bench/test_workloads.py holds their digests.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

VOCABULARY = 10000
"""Prompts are drawn from the ids below it, whatever the model's own vocabulary, if it has them."""


class BenchRequest(NamedTuple):
    """A prompt, and how many tokens must follow it: no stop token ends them early."""

    prompt_token_ids: list[int]
    num_output_tokens: int


Workload = Sequence[BenchRequest]


def _tokens(rng: Generator, vocabulary: int, count: int) -> list[int]:
    drawn: list[int] = rng.integers(0, vocabulary, count).tolist()
    return drawn


def uniform(vocabulary: int = VOCABULARY) -> Workload:
    """256 requests, prompts and outputs of 100 to 1024 tokens: a batch that is full for long."""
    rng = np.random.default_rng(0)
    # The draws alternate: length of the prompt, its tokens, length of the output.
    return [
        BenchRequest(
            _tokens(rng, vocabulary, int(rng.integers(100, 1025))), int(rng.integers(100, 1025))
        )
        for _ in range(256)
    ]


def chat(vocabulary: int = VOCABULARY) -> Workload:
    """512 requests of log-normal lengths, as people chat: medians 150 and 200, long tails."""
    rng = np.random.default_rng(1)
    prompts = np.clip(rng.lognormal(5.0, 1.0, 512), 16, 2048).astype(int)
    outputs = np.clip(rng.lognormal(5.3, 0.8, 512), 16, 1024).astype(int)
    return [
        BenchRequest(_tokens(rng, vocabulary, int(prompt)), int(output))
        for prompt, output in zip(prompts, outputs, strict=True)
    ]


def single(
    vocabulary: int = VOCABULARY, *, num_prompt_tokens: int = 128, num_output_tokens: int = 256
) -> Workload:
    """One request: the latency of a token where nothing else runs."""
    rng = np.random.default_rng(2)
    return [BenchRequest(_tokens(rng, vocabulary, num_prompt_tokens), num_output_tokens)]


def shared_prefix(vocabulary: int = VOCABULARY) -> Workload:
    """256 requests of 1024 common tokens, 64 of their own and 64 to write."""
    rng = np.random.default_rng(3)
    prefix = _tokens(rng, vocabulary, 1024)
    return [BenchRequest(prefix + _tokens(rng, vocabulary, 64), 64) for _ in range(256)]


def long_prefill(vocabulary: int = VOCABULARY) -> Workload:
    """16 prompts of 8192 tokens and 16 tokens each after them: arithmetic, hardly any memory."""
    rng = np.random.default_rng(4)
    return [BenchRequest(_tokens(rng, vocabulary, 8192), 16) for _ in range(16)]


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "uniform": uniform,
    "chat": chat,
    "single": single,
    "shared_prefix": shared_prefix,
    "long_prefill": long_prefill,
}


def shrunk(workload: Workload, factor: int) -> Workload:
    """About 1/factor of the requests, of the tokens of each prompt and of each output.

    Prompts keep every factor-th token, so that common prefixes stay common and own ends own.
    """
    return [
        BenchRequest(prompt[::factor], max(1, output // factor))
        for prompt, output in workload[: -(-len(workload) // factor)]
    ]


def digest(workload: Workload) -> str:
    """SHA-256 of the workload as compact JSON: equal digests are equal tokens."""
    return hashlib.sha256(json.dumps(workload, separators=(",", ":")).encode()).hexdigest()
