"""Draws have the softmax's distribution and are independent; each test shows that it could fail.

Seeds are fixed, so a run passes or fails for good; the level is what a wrong sampler must beat.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, power_divergence  # type: ignore[import-untyped]

from pagetwin.engine.request import Request
from pagetwin.engine.sampler import Sampler, SamplingRow
from pagetwin.engine.sampling_params import SamplingParams

ALPHA = 1e-6
NUM_DRAWS = 40_000
VOCAB = 16
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 3


def tokens_of(rows: list[SamplingRow], logits: torch.Tensor = LOGITS) -> NDArray[np.int64]:
    output = Sampler(len(logits)).sample(logits.expand(len(rows), -1), rows)
    return np.array([output.sampled[row.seq_id] for row in rows])


def by_sample(**fields: Any) -> NDArray[np.int64]:
    """One request, drawn once for each of many sample indexes."""
    params = SamplingParams(**fields)
    request = Request(request_id="r", prompt_token_ids=(1,), sampling_params=params)
    return tokens_of([SamplingRow(f"r/{i}", request, i, ()) for i in range(NUM_DRAWS)])


def expected(temperature: float = 1.0, kept: int = VOCAB) -> NDArray[np.float64]:
    """Probabilities in float64 of the `kept` most likely tokens."""
    scores = LOGITS.double().numpy() / temperature
    weights = np.exp(scores - scores.max())
    weights[np.argsort(-scores)[kept:]] = 0
    return np.asarray(weights / weights.sum())


def p_value(tokens: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """G test; 0 for a token that has no business to be drawn, cells below 20 pooled."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    if counts[probabilities == 0].any():
        return 0.0
    wanted = probabilities * len(tokens)
    large = wanted >= 20
    pooled = [np.append(x[large], x[~large].sum()) for x in (counts, wanted)]
    if pooled[1][-1] == 0:
        pooled = [x[:-1] for x in pooled]
    return float(power_divergence(*pooled, lambda_="log-likelihood").pvalue)


@pytest.mark.parametrize("seed", [None, 12])
@pytest.mark.parametrize("temperature", [0.8, 1.0, 2.0])
def test_draws_have_the_softmax_distribution(seed: int | None, temperature: float) -> None:
    tokens = by_sample(temperature=temperature, seed=seed)
    assert p_value(tokens, expected(temperature)) > ALPHA
    assert p_value(tokens, expected(temperature * 1.05)) < ALPHA


def test_truncated_draws_are_renormalised() -> None:
    tokens = by_sample(top_k=5, seed=12)
    assert p_value(tokens, expected(kept=5)) > ALPHA
    assert p_value(tokens, expected(kept=4)) < ALPHA
    assert p_value(tokens, expected(kept=6)) < ALPHA


def test_draws_over_names_and_over_positions_have_the_distribution() -> None:
    def request(name: str) -> Request:
        return Request(request_id=name, prompt_token_ids=(1,))

    names = [SamplingRow(f"n{i}/0", request(f"n{i}"), 0, ()) for i in range(NUM_DRAWS)]
    positions = [
        SamplingRow(f"{name}:{i}", request(f"p{name}"), 0, range(i))
        for name in range(80)
        for i in range(500)
    ]
    for rows in (names, positions):
        tokens = tokens_of(rows)
        assert p_value(tokens, expected()) > ALPHA
        assert p_value(tokens, expected(1.05)) < ALPHA


def independence(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """p-value of the contingency table of two token columns, tokens folded into four classes."""
    table = np.zeros((4, 4), np.int64)
    np.add.at(table, (first % 4, second % 4), 1)
    return float(chi2_contingency(table).pvalue)


def test_neighbouring_samples_positions_and_tokens_are_independent() -> None:
    logits = torch.zeros(8)
    request = Request(request_id="r", prompt_token_ids=(1,))
    grid = [
        SamplingRow(f"{index}:{position}", request, index, (0,) * position)
        for index in range(2_000)
        for position in range(10)
    ]
    tokens = tokens_of(grid, logits).reshape(2_000, 10)
    assert independence(tokens[:, :-1].ravel(), tokens[:, 1:].ravel()) > ALPHA
    assert independence(tokens[:-1].ravel(), tokens[1:].ravel()) > ALPHA
    # One position in ten repeats the one before.
    leaky = tokens.copy()
    leaky[:, 5] = leaky[:, 4]
    assert independence(leaky[:, :-1].ravel(), leaky[:, 1:].ravel()) < ALPHA
