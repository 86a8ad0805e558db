"""Flips are counted against what rounding explains; errors at block edges stand out."""

import numpy as np

from pagetwin.conformance.numerics.greedy import block_edge_p_value, choices_of, flips_p_value
from pagetwin.conformance.statistics.rates import is_at_most

RANDOM = np.random.default_rng(3)
LOGITS = RANDOM.normal(size=(1500, 60)) * 2


def chosen_with_error(error: float) -> np.ndarray:
    noisy = LOGITS + RANDOM.normal(size=LOGITS.shape) * error
    return np.asarray(noisy.argmax(axis=-1))


def test_margins_and_flips_by_hand() -> None:
    choices = choices_of(np.array([[1.0, 3.0, 2.5], [0.0, -1.0, -1.0]]), np.array([2, 0]))
    assert choices.margins.tolist() == [0.5, 1.0]
    assert choices.flipped.tolist() == [True, False]


def test_flips_of_the_stated_error_are_explained_and_those_of_a_larger_one_are_not() -> None:
    honest = choices_of(LOGITS, chosen_with_error(0.05))
    assert honest.flipped.any()
    assert flips_p_value(honest, error=0.05) > 1e-3
    assert flips_p_value(choices_of(LOGITS, chosen_with_error(0.3)), error=0.05) < 1e-6


def test_no_flip_is_never_too_many() -> None:
    assert flips_p_value(choices_of(LOGITS, LOGITS.argmax(axis=-1)), error=1e-6) == 1.0


def test_errors_at_block_edges_stand_out_and_equal_ones_do_not() -> None:
    positions = np.arange(400)
    errors = RANDOM.exponential(1e-6, 400)
    assert block_edge_p_value(errors, positions, 16) > 0.01
    errors[positions % 16 < 2] *= 4
    assert block_edge_p_value(errors, positions, 16) < 1e-5


def test_false_alarms_of_the_block_edge_test_stay_below_alpha() -> None:
    random, runs, alpha = np.random.default_rng(5), 1000, 0.01
    positions = np.arange(500)
    errors = random.exponential(size=(runs, 500))
    alarms = sum(block_edge_p_value(row, positions, 16) <= alpha for row in errors)
    # The normal approximation is granted a tenth.
    assert is_at_most(alarms, runs, 1.1 * alpha)


def test_a_block_of_one_token_has_only_edges() -> None:
    assert block_edge_p_value(np.ones(5), np.arange(5), 1) == 1.0
