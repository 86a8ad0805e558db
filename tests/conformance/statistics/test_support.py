"""Supports against the plain definition, and what rounding leaves open."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pagetwin.conformance.statistics.support import Truncation, draws_to_see, support_of

logit_lists = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=12)
truncations = st.builds(
    Truncation,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    top_k=st.integers(0, 13),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]),
)


def plain_support(logits: list[float], truncation: Truncation) -> set[int]:
    """The documented stages, one token after the other."""
    scores = {i: x / truncation.temperature for i, x in enumerate(logits)}
    best = max(scores.values())
    kept = [i for i in scores if math.exp(scores[i] - best) >= truncation.min_p]
    kept.sort(key=lambda i: (-scores[i], i))
    if truncation.top_k:
        last = scores[kept[min(truncation.top_k, len(kept)) - 1]]
        kept = [i for i in kept if scores[i] >= last]
    if truncation.top_p < 1:
        total = sum(math.exp(scores[i] - best) for i in kept)
        mass, first = 0.0, []
        for i in kept:
            if mass / total >= truncation.top_p:
                break
            first.append(i)
            mass += math.exp(scores[i] - best)
        kept = first
    return set(kept)


@given(logits=logit_lists, truncation=truncations, epsilon=st.sampled_from([1e-9, 1e-3, 0.2]))
def test_certain_and_possible_tokens_enclose_the_plain_support(
    logits: list[float], truncation: Truncation, epsilon: float
) -> None:
    support = support_of(np.array(logits), truncation, epsilon=epsilon)
    plain = plain_support(logits, truncation)
    certain = set(np.flatnonzero(support.certain))
    allowed = set(np.flatnonzero(~support.forbidden))
    assert certain <= plain <= allowed
    assert support.probabilities.sum() == pytest.approx(1)


@given(
    logits=logit_lists,
    truncation=truncations,
    epsilon=st.sampled_from([1e-3, 0.05]),
    data=st.data(),
)
def test_no_perturbation_within_epsilon_leaves_the_enclosure(
    logits: list[float], truncation: Truncation, epsilon: float, data: st.DataObject
) -> None:
    support = support_of(np.array(logits), truncation, epsilon=epsilon)
    signs = data.draw(
        st.lists(st.floats(-1, 1), min_size=len(logits), max_size=len(logits)), label="signs"
    )
    moved = [x + epsilon * sign for x, sign in zip(logits, signs, strict=True)]
    plain = plain_support(moved, truncation)
    assert set(np.flatnonzero(support.certain)) <= plain
    assert not plain & set(np.flatnonzero(support.forbidden))


def test_distinct_tokens_far_from_any_edge_leave_nothing_open() -> None:
    logits = np.linspace(3, -3, 9)
    truncation = Truncation(temperature=0.8, min_p=0.01, top_k=6, top_p=0.9)
    support = support_of(logits, truncation, epsilon=1e-6)
    assert support.is_exact
    assert set(np.flatnonzero(support.certain)) == plain_support(logits.tolist(), truncation)
    assert support.forbidden.any()


def test_tokens_tied_at_rank_k_are_borderline() -> None:
    support = support_of(np.array([2.0, 1.0, 1.0, 0.0]), Truncation(top_k=2), epsilon=1e-9)
    assert support.certain.tolist() == [True, False, False, False]
    assert support.borderline.tolist() == [False, True, True, False]


def test_masked_tokens_are_forbidden() -> None:
    support = support_of(np.array([0.0, -np.inf, 0.0]), Truncation(), epsilon=0.1)
    assert support.forbidden.tolist() == [False, True, False]
    assert support.probabilities.tolist() == [0.5, 0.0, 0.5]


@given(mass=st.floats(1e-4, 0.9), miss=st.floats(1e-9, 0.5))
def test_so_many_draws_miss_as_rarely_as_asked_and_one_fewer_does_not(
    mass: float, miss: float
) -> None:
    draws = draws_to_see(mass, miss)
    assume(draws > 1)
    assert (1 - mass) ** draws <= miss * (1 + 1e-9)
    assert (1 - mass) ** (draws - 1) > miss * (1 - 1e-9)


def test_a_mass_of_a_thousandth_needs_seven_thousand_draws() -> None:
    assert draws_to_see(1e-3, 1e-3) == 6905


@pytest.mark.parametrize("logits", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_broken_logits_are_refused(logits: list[float]) -> None:
    with pytest.raises(ValueError, match="logits"):
        support_of(np.array(logits), Truncation(), epsilon=0.0)
