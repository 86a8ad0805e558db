"""The transform is uniform for right samplers, whatever they draw from, and not for wrong ones."""

from collections.abc import Callable

import numpy as np
import pytest

from pagetwin.conformance.statistics.e_process import uniform
from pagetwin.conformance.statistics.pit import (
    NUM_BINS,
    PAIR_BINS,
    across_pairs,
    bin_counts,
    lagged_pairs,
    pair_counts,
    randomised_pit,
)
from pagetwin.conformance.statistics.rates import is_at_least, is_at_most

Floats = np.ndarray
ROWS, VOCAB = 4000, 50
LOGITS = np.random.default_rng(1).normal(size=(ROWS, VOCAB)) * 3


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def draw(p: Floats, random: np.random.Generator) -> Floats:
    """One token of each row."""
    token = (p.cumsum(axis=1) < random.random((len(p), 1))).sum(axis=1)
    return np.asarray(np.minimum(token, p.shape[1] - 1))


def top_p(p: Floats, mass: float) -> Floats:
    order = np.argsort(-p, axis=1)
    ordered = np.take_along_axis(p, order, axis=1)
    kept = np.where(ordered.cumsum(axis=1) - ordered < mass, ordered, 0)
    cut = np.zeros_like(p)
    np.put_along_axis(cut, order, kept, axis=1)
    return np.asarray(cut / cut.sum(axis=1, keepdims=True))


def transform(drawn: Floats, judged: Floats, random: np.random.Generator) -> Floats:
    return randomised_pit(judged, draw(drawn, random), random.random(len(drawn)))


def alarms(drawn: Floats, judged: Floats, alpha: float, *, runs: int) -> int:
    random = np.random.default_rng(6)
    return sum(
        uniform(NUM_BINS, subject="u")
        .add(bin_counts(transform(drawn, judged, random)), subject="u")
        .rejects(alpha)
        for _ in range(runs)
    )


def test_draws_of_thousands_of_distributions_are_one_uniform_sample() -> None:
    p = softmax(LOGITS)
    assert is_at_most(alarms(p, p, 0.01, runs=150), 150, 0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: softmax(LOGITS / 1.1),
        lambda: softmax(LOGITS / 0.9),
        lambda: top_p(softmax(LOGITS), 0.95),
        lambda: 0.96 * softmax(LOGITS) + 0.04 / VOCAB,
    ],
    ids=["hotter", "colder", "truncated", "leaking"],
)
def test_a_wrong_sampler_is_found(wrong: Callable[[], Floats]) -> None:
    assert is_at_least(alarms(wrong(), softmax(LOGITS), 1e-5, runs=15), 15, 0.9)


def test_a_temperature_five_percent_off_is_found_within_40_000_draws() -> None:
    random = np.random.default_rng(3)
    for run in range(5):
        process = uniform(NUM_BINS, subject="u")
        while process.num_draws < 40_000 and not process.rejects(1e-5):
            logits = random.normal(size=(ROWS, VOCAB)) * 3
            u = transform(softmax(logits / 1.05), softmax(logits), random)
            process = process.add(bin_counts(u), subject="u")
        assert process.rejects(1e-5), run


def test_a_top_p_that_is_not_applied_is_found() -> None:
    p = softmax(LOGITS)
    assert alarms(p, top_p(p, 0.9), 1e-5, runs=3) == 3


def test_the_transform_by_hand() -> None:
    p = np.array([[0.2, 0.5, 0.2, 0.1]] * 4)
    u = randomised_pit(p, np.array([1, 0, 2, 3]), np.array([0.5, 0.0, 0.25, 0.999]))
    assert u == pytest.approx([0.25, 0.5, 0.75, 0.9999])


def test_no_value_reaches_one_even_for_an_impossible_token() -> None:
    u = randomised_pit(np.array([[1.0, 0.0]]), np.array([1]), np.array([0.7]))
    assert u[0] < 1
    assert bin_counts(u).sum() == 1


@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 12])
def test_pairs_are_that_far_apart_and_share_no_value(lag: int, length: int) -> None:
    pairs = lagged_pairs(np.arange(length, dtype=float), lag)
    assert (pairs[:, 1] - pairs[:, 0] == lag).all()
    assert len(set(pairs.ravel())) == pairs.size
    assert len(pairs) >= (length - lag) // (2 * lag)


def pair_rejects(pairs: Floats, alpha: float) -> bool:
    cells = uniform(PAIR_BINS**2, subject="pairs")
    return cells.add(pair_counts(pairs), subject="pairs").rejects(alpha)


def test_noise_shared_by_requests_is_found_and_noise_of_their_own_is_not() -> None:
    random = np.random.default_rng(8)
    logits = random.normal(size=(200, VOCAB)) * 2
    rows = [softmax(logits / temperature) for temperature in np.linspace(0.8, 1.2, 20)]
    own = [transform(p, p, random) for p in rows]
    shared_noise = random.gumbel(size=(200, VOCAB))
    shared = [
        randomised_pit(p, (np.log(p) + shared_noise).argmax(axis=1), random.random(200))
        for p in rows
    ]
    assert not pair_rejects(across_pairs(own), 1e-4)
    assert pair_rejects(across_pairs(shared), 1e-5)


def test_noise_repeated_at_the_next_position_is_found() -> None:
    random = np.random.default_rng(8)
    p = softmax(np.tile(LOGITS[:1], (2000, 1)))
    noise = random.gumbel(size=(2000, VOCAB))
    repeated = noise.copy()
    repeated[1::4] = noise[0::4]
    for each, expected in ((noise, False), (repeated, True)):
        u = randomised_pit(p, (np.log(p) + each).argmax(axis=1), random.random(2000))
        assert pair_rejects(lagged_pairs(u, 1), 1e-5) is expected


def test_requests_of_unlike_lengths_are_paired_as_far_as_both_go() -> None:
    pairs = across_pairs([np.arange(3.0), np.arange(10.0, 15.0), np.arange(9.0)])
    assert pairs.tolist() == [[0, 10], [1, 11], [2, 12]]
