"""The e-process keeps its promise at any time, and carries over from run to run."""

import math
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.conformance.statistics.e_process import EProcess, start, uniform
from pagetwin.conformance.statistics.rates import is_at_least, is_at_most

CELLS = np.array([0.4, 0.3, 0.2, 0.1])
SUBJECT = "sampler 1"


def rejections(drawn: np.ndarray, alpha: float, *, runs: int, looks: int, batch: int) -> int:
    """Runs in which one of many looks rejects CELLS, where `drawn` is true."""
    random = np.random.default_rng(9)
    found = 0
    for _ in range(runs):
        process = start(CELLS, subject=SUBJECT)
        for _ in range(looks):
            process = process.add(random.multinomial(batch, drawn), subject=SUBJECT)
        found += process.rejects(alpha)
    return found


def test_looking_often_raises_no_false_alarms() -> None:
    alpha, runs = 0.05, 400
    assert is_at_most(rejections(CELLS, alpha, runs=runs, looks=50, batch=40), runs, alpha)


def test_a_small_deviation_is_found_in_the_end() -> None:
    drawn = np.array([0.42, 0.3, 0.19, 0.09])
    found = rejections(drawn, 1e-5, runs=30, looks=40, batch=1000)
    assert is_at_least(found, 30, 0.99)


@given(counts=st.lists(st.integers(0, 4), min_size=2, max_size=3))
def test_the_value_is_the_ratio_of_two_probabilities_of_the_sequence(counts: list[int]) -> None:
    """By hand: the next cell's predictive probability under a Polya urn, over its null one."""
    p = [1 / len(counts)] * len(counts)
    process = start(p, subject=SUBJECT, concentration=2.0).add(counts, subject=SUBJECT)
    log_e, seen = 0.0, [0] * len(counts)
    for cell, count in enumerate(counts):
        for _ in range(count):
            predicted = (2.0 * p[cell] + seen[cell]) / (2.0 + sum(seen))
            log_e += math.log(predicted / p[cell])
            seen[cell] += 1
    assert process.log_e == pytest.approx(log_e, abs=1e-9)


def test_the_mean_over_all_outcomes_is_one() -> None:
    """An e-value by definition: its expectation under the null is 1."""
    total = 0.0
    for a in range(7):
        for b in range(7 - a):
            counts = (a, b, 6 - a - b)
            ways = math.factorial(6) / math.prod(math.factorial(c) for c in counts)
            process = start([0.5, 0.3, 0.2], subject=SUBJECT).add(counts, subject=SUBJECT)
            p = math.prod(q**c for q, c in zip((0.5, 0.3, 0.2), counts, strict=True))
            total += ways * p * math.exp(process.log_e)
    assert total == pytest.approx(1.0)


def test_a_stored_process_goes_on_where_it_stopped() -> None:
    random = np.random.default_rng(1)
    batches = [random.multinomial(500, [0.5, 0.2, 0.2, 0.1]) for _ in range(4)]
    through = start(CELLS, subject=SUBJECT)
    resumed = through
    for batch in batches:
        through = through.add(batch, subject=SUBJECT)
        stored = msgspec.json.encode(resumed)
        resumed = msgspec.json.decode(stored, type=EProcess).add(batch, subject=SUBJECT)
    assert resumed == through
    assert resumed.num_draws == 2000


def test_a_rejection_is_not_forgotten() -> None:
    process = start(CELLS, subject=SUBJECT).add([400, 0, 0, 0], subject=SUBJECT)
    assert process.rejects(1e-5)
    later = process
    for _ in range(50):
        later = later.add([400, 300, 200, 100], subject=SUBJECT)
    assert later.log_e < process.log_e
    assert later.rejects(1e-5)


def test_more_of_the_same_deviation_is_more_evidence() -> None:
    values = [uniform(8, subject="u").add([n] * 7 + [0], subject="u").log_e for n in (40, 80, 160)]
    assert all(a < b for a, b in pairwise(values))


def test_counts_of_another_subject_are_refused() -> None:
    with pytest.raises(ValueError, match="start a new one"):
        start(CELLS, subject=SUBJECT).add([1, 0, 0, 0], subject="sampler 2")


@pytest.mark.parametrize("p", [[1.0], [0.5, 0.6], [1.0, 0.0]])
def test_cells_that_are_no_distribution_are_refused(p: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        start(p, subject=SUBJECT)
