"""The work list of prefill attention covers every chunk's rows once, long tiles first."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.engine.attention.prefill_plan import plan_prefill


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Rows, lengths and table rows of the sequences of a step; shrinks to none."""
    rows = draw(st.lists(st.integers(1, 700), max_size=8))
    lengths = [n + draw(st.integers(0, 5000)) for n in rows]
    table_rows = draw(st.permutations(range(len(rows) + 3)))[: len(rows)]
    return rows, lengths, table_rows


@given(steps(), st.sampled_from([64, 128]))
def test_every_row_of_a_chunk_is_in_one_tile(
    step: tuple[list[int], list[int], list[int]], block_m: int
) -> None:
    rows, lengths, table_rows = step
    wanted = {}
    first_row = 0
    for n, length, table_row in zip(rows, lengths, table_rows, strict=True):
        if n > 1:
            for i in range(n):
                wanted[first_row + i] = length - n + i, table_row
        first_row += n
    found = {}
    for first, position, table_row, n in plan_prefill(rows, lengths, table_rows, block_m).tolist():
        assert 0 < n <= block_m
        for i in range(n):
            assert first + i not in found
            found[first + i] = position + i, table_row
    assert found == wanted


@given(steps())
def test_long_tiles_come_first_and_equals_in_order(
    step: tuple[list[int], list[int], list[int]],
) -> None:
    tiles = plan_prefill(*step, 128)
    ends = (tiles[:, 1] + tiles[:, 3]).tolist()
    assert ends == sorted(ends, reverse=True)
    for a, b, end_a, end_b in zip(tiles, tiles[1:], ends, ends[1:], strict=False):
        assert end_a != end_b or a[0] < b[0]


def test_decodes_and_padding_have_no_tiles() -> None:
    assert plan_prefill([1, 300, 1, 5], [9, 300, 1, 0], [0, 1, 2, 3], 128).tolist() == [
        [257, 256, 1, 44],
        [129, 128, 1, 128],
        [1, 0, 1, 128],
    ]


def test_an_empty_step_has_no_tiles() -> None:
    tiles = plan_prefill([], [], [], 128)
    assert tiles.shape == (0, 4)
    assert tiles.dtype == np.int32
