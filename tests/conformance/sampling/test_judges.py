"""Each judge passes the right sampler, and names the wrong one that it is there for."""

from collections.abc import Callable

import numpy as np
import pytest

from pagetwin.conformance.sampling import judges
from pagetwin.conformance.sampling.draws import DrawFacts, facts_of, law_of
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

Floats = np.ndarray
Sampler = Callable[[Floats, SamplingParams, Floats], int]
"""Logits, parameters and noise, to a token."""
VOCAB, EPSILON, ALPHA = 80, 1e-6, 1e-5


def kept(scores: Floats, mass: float, *, exclusive: bool = False) -> Floats:
    order = np.argsort(-scores, kind="stable")
    p = np.exp(scores[order] - scores.max())
    p /= p.sum()
    inside = (np.cumsum(p) < mass) if exclusive else (np.cumsum(p) - p < mass)
    inside[0] = True
    result = np.full_like(scores, -np.inf)
    result[order[inside]] = scores[order[inside]]
    return result


def right(logits: Floats, params: SamplingParams, noise: Floats) -> int:
    return int((kept(logits / params.temperature, params.top_p) + noise).argmax())


def hotter(logits: Floats, params: SamplingParams, noise: Floats) -> int:
    return right(logits / 1.05, params, noise)


def leaking(logits: Floats, params: SamplingParams, noise: Floats) -> int:
    return int((kept(logits / params.temperature, params.top_p + 0.02) + noise).argmax())


def exclusive(logits: Floats, params: SamplingParams, noise: Floats) -> int:
    scores = kept(logits / params.temperature, params.top_p, exclusive=True)
    return int((scores + noise).argmax())


def draw_all(
    sampler: Sampler,
    *,
    num_requests: int = 20,
    num_tokens: int = 200,
    top_p: float = 0.9,
    noise_of: Callable[[int, int], Floats] | None = None,
    know_noise: bool = False,
) -> list[DrawFacts]:
    """Facts of every draw; all requests see the same logits at a position, as with one prompt."""
    random = np.random.default_rng(17)
    params = SamplingParams(temperature=0.9, top_p=top_p)
    rows = random.normal(size=(num_tokens, VOCAB)) * 2
    own_noise = random.gumbel(size=(num_requests, num_tokens, VOCAB))
    facts = []
    for i in range(num_requests):
        request = Request(request_id=f"r{i}", prompt_token_ids=(0,), sampling_params=params)
        for t in range(num_tokens):
            noise = own_noise[i, t] if noise_of is None else noise_of(i, t)
            law = law_of(rows[t], request, (0,) * t, epsilon=EPSILON)
            token = sampler(rows[t], params, noise)
            known = noise if know_noise else None
            facts.append(facts_of(law, token, v=random.random(), noise=known))
    return facts


@pytest.fixture(scope="module")
def right_draws() -> list[DrawFacts]:
    return draw_all(right, know_noise=True)


def test_the_right_sampler_passes_every_judge(right_draws: list[DrawFacts]) -> None:
    found = [
        judges.judge_support(right_draws),
        judges.judge_edge(right_draws, alpha=ALPHA),
        judges.judge_coupled(right_draws, tolerance=1e-9),
        judges.judge_pit(right_draws, alpha=ALPHA),
        judges.judge_lags(right_draws, alpha=ALPHA),
        judges.judge_across(right_draws, alpha=ALPHA),
    ]
    assert [one.failure for one in found] == [None] * 6
    assert min(one.num_draws for one in found) > 900


def test_a_leaking_top_p_draws_outside_the_support() -> None:
    found = judges.judge_support(draw_all(leaking))
    assert found.failure is not None
    assert found.statistic > 20
    assert "which its parameters exclude" in found.failure


def test_a_top_p_that_leaves_out_the_crossing_token_is_missed_at_the_edge() -> None:
    draws = draw_all(exclusive)
    assert judges.judge_support(draws).failure is None
    found = judges.judge_edge(draws, alpha=ALPHA)
    assert found.failure is not None
    assert "came 0 times" in found.failure


def test_with_known_noise_a_handful_of_draws_shows_a_wrong_temperature() -> None:
    draws = draw_all(hotter, num_requests=4, top_p=1.0, know_noise=True)
    found = judges.judge_coupled(draws, tolerance=1e-6)
    assert found.failure is not None
    assert found.statistic > 1e-3
    assert judges.judge_pit(draws, alpha=ALPHA).failure is None


def test_without_the_noise_thousands_of_draws_show_it() -> None:
    draws = draw_all(hotter, num_requests=100, top_p=1.0)
    assert judges.judge_pit(draws, alpha=ALPHA).failure is not None


def test_a_shared_generator_shows_across_requests() -> None:
    random = np.random.default_rng(1)
    shared = random.gumbel(size=(200, VOCAB))
    draws = draw_all(right, noise_of=lambda _, t: shared[t])
    assert judges.judge_across(draws, alpha=ALPHA).failure is not None
    assert judges.judge_support(draws).failure is None


def test_noise_that_does_not_advance_shows_at_lag_one() -> None:
    random = np.random.default_rng(1)
    stuck = random.gumbel(size=(60, VOCAB))
    draws = draw_all(right, num_requests=60, noise_of=lambda i, _: stuck[i], top_p=1.0)
    found = judges.judge_lags(draws, alpha=ALPHA)
    assert found.failure is not None


def test_a_borderline_position_is_left_out_where_it_would_mislead() -> None:
    params = SamplingParams(top_k=1)
    request = Request(request_id="r", prompt_token_ids=(0,), sampling_params=params)
    law = law_of(np.array([1.0, 1.0, 0.0]), request, (), epsilon=EPSILON)
    either = [facts_of(law, token, v=0.5) for token in (0, 1)]
    assert [fact.is_allowed for fact in either] == [True, True]
    assert [fact.u for fact in either] == [None, None]
    assert not facts_of(law, 2, v=0.5).is_allowed


def test_pairs_are_cut_where_a_position_is_left_out() -> None:
    params = SamplingParams()
    request = Request(request_id="r", prompt_token_ids=(0,), sampling_params=params)
    law = law_of(np.zeros(3), request, (), epsilon=EPSILON)
    facts = [facts_of(law, 0, v=0.1)._replace(u=u) for u in (0.1, 0.2, None, 0.3, 0.4)]
    assert judges.judge_lags(facts, alpha=ALPHA).num_draws <= 1
