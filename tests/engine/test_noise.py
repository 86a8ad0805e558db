"""The noise is Philox, is a pure function of its key, and has the Gumbel distribution."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest  # type: ignore[import-untyped]

from pagetwin.engine.noise import (
    GUMBEL_RANGE,
    Draw,
    draw_for,
    gumbel_noise,
    gumbel_noise_at,
    philox,
)

CPU = torch.device("cpu")
WORDS = st.integers(0, 2**32 - 1)
DRAWS = st.builds(Draw, WORDS, WORDS, WORDS, WORDS, st.integers(0, 1))


def philox_in_python(counter: list[int], key: list[int]) -> list[int]:
    """The definition, with Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    """The known-answer vectors that Random123 publishes for philox4x32-10."""
    k0, k1 = (torch.tensor(word) for word in key)
    words = philox([torch.tensor(word) for word in counter], (k0, k1))
    assert [int(word) for word in words] == expected == philox_in_python(counter, key)


@given(st.lists(WORDS, min_size=4, max_size=4), st.lists(WORDS, min_size=2, max_size=2))
def test_philox_equals_its_definition(counter: list[int], key: list[int]) -> None:
    k0, k1 = (torch.tensor(word) for word in key)
    words = philox([torch.tensor(word) for word in counter], (k0, k1))
    assert [int(word) for word in words] == philox_in_python(counter, key)


@given(st.lists(DRAWS, min_size=1, max_size=5), st.integers(1, 40), st.data())
def test_a_row_of_noise_depends_on_its_draw_alone(
    draws: list[Draw], vocab_size: int, data: st.DataObject
) -> None:
    noise = gumbel_noise(draws, vocab_size, CPU)
    order = data.draw(st.permutations(range(len(draws))))
    assert torch.equal(gumbel_noise([draws[i] for i in order], vocab_size, CPU), noise[order])
    for i, draw in enumerate(draws):
        assert torch.equal(gumbel_noise([draw], vocab_size, CPU)[0], noise[i])
        assert torch.equal(gumbel_noise([draw], vocab_size + 7, CPU)[0, :vocab_size], noise[i])


@given(st.lists(DRAWS, min_size=1, max_size=3), st.integers(1, 40), st.data())
def test_a_token_has_the_noise_of_its_place(
    draws: list[Draw], vocab_size: int, data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, vocab_size - 1))
    draw = draws[-1]
    words = philox_in_python([token // 4, *draw[2:]], list(draw[:2]))
    expected = -math.log(-math.log((words[token % 4] + 0.5) / 2**32))
    place = torch.tensor([len(draws) - 1]), torch.tensor([token])
    for noise in (
        gumbel_noise(draws, vocab_size, CPU)[-1, token],
        gumbel_noise_at(draws, *place)[0],
    ):
        assert float(noise) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_every_field_of_a_draw_changes_the_noise() -> None:
    base = Draw(1, 2, 3, 4, 0)
    others = [base._replace(**{field: getattr(base, field) + 1}) for field in Draw._fields]
    rows = gumbel_noise([base, *others], 64, CPU).tolist()
    assert len({tuple(row) for row in rows}) == 6
    assert all(len(set(column)) == 6 for column in zip(*rows, strict=True))


@given(st.integers(-(2**63), 2**63 - 1), st.integers(), st.integers(), st.text(), st.text())
def test_a_seed_draws_alike_under_any_name_and_engine(
    seed: int, one: int, other: int, name: str, other_name: str
) -> None:
    first = draw_for(seed, engine_seed=one, request_id=name, sample_index=2, position=5)
    second = draw_for(seed, engine_seed=other, request_id=other_name, sample_index=2, position=5)
    assert first == second
    assert all(0 <= word < 2**32 for word in first)


def test_seeds_names_and_engines_are_told_apart() -> None:
    def key(seed: int | None, engine_seed: int, request_id: str) -> Draw:
        return draw_for(
            seed, engine_seed=engine_seed, request_id=request_id, sample_index=0, position=0
        )

    seeds = [0, 1, 2**32, -1, -(2**63), 2**63 - 1]
    keys = [key(seed, 0, "a") for seed in seeds]
    keys += [key(None, engine, name) for engine in (0, 1, 11) for name in ("a", "b", "1:a")]
    assert len(set(keys)) == len(keys)


def test_noise_has_the_gumbel_distribution() -> None:
    draws = [Draw(7, 0, position, 0, 0) for position in range(40)]
    noise = gumbel_noise(draws, 5000, CPU).flatten()
    assert kstest(noise.numpy(), "gumbel_r").pvalue > 1e-6
    # The test can tell: the same noise, five hundredths wider.
    assert kstest(noise.numpy() * 1.05, "gumbel_r").pvalue < 1e-6


def test_the_smallest_and_largest_words_stay_finite() -> None:
    low, high = (-math.log(-math.log((word + 0.5) / 2**32)) for word in (0, 2**32 - 1))
    assert GUMBEL_RANGE[0] < low < high < GUMBEL_RANGE[1]
