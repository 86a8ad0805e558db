"""The work list of decode attention against a plain one, sequence by sequence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pagetwin.engine.attention.decode_plan import DecodePlan, max_items, plan_decode
from pagetwin.kernels.attention_tiles import SPLIT

Read = tuple[int, int, tuple[int, ...]]
"""One split of one sequence: its query row, the split, the blocks that are read for it."""


def reads_wanted(
    query_rows: list[int], lengths: list[int], tables: list[list[int]], block_size: int
) -> list[Read]:
    """The plain twin: every split of every sequence, of an empty one the first."""
    reads = []
    for query_row, length, table in zip(query_rows, lengths, tables, strict=True):
        for start in range(0, max(length, 1), SPLIT):
            end = min(start + SPLIT, length)
            blocks = table[start // block_size : -(-end // block_size)]
            reads.append((query_row, start // SPLIT, tuple(blocks)))
    return sorted(reads)


def reads_planned(plan: DecodePlan, block_tables: NDArray[np.int32], block_size: int) -> list[Read]:
    reads = []
    for row, end, first, count in plan.items.tolist():
        start = max(end - 1, 0) // SPLIT * SPLIT
        blocks = block_tables[row, start // block_size : -(-end // block_size)].tolist()
        for query_row, length, _, _ in plan.members[first : first + count].tolist():
            assert end == min(start + SPLIT, length)
            reads.append((query_row, start // SPLIT, tuple(blocks)))
    return sorted(reads)


def plan(
    lengths: list[int], tables: NDArray[np.int32], *, block_size: int = 16, members_per_item: int
) -> DecodePlan:
    """Sequence i has query row 3 + i and the last table row but i."""
    rows = np.arange(len(lengths), dtype=np.int32)
    return plan_decode(
        rows + 3,
        np.array(lengths, np.int32),
        len(tables) - 1 - rows,
        tables,
        block_size=block_size,
        members_per_item=members_per_item,
    )


def tables_of(families: list[tuple[int, int]], max_blocks: int) -> NDArray[np.int32]:
    """Rows of blocks of their own, from the last row up; the first `num_shared` of sequence i are
    its family's. Families branch: 2 begins as 1 does, for 100 blocks."""
    own = np.arange(10_000, 10_000 + len(families) * max_blocks, dtype=np.int32)
    tables = own.reshape(len(families), max_blocks)
    for row, (family, num_shared) in zip(tables[::-1], families, strict=True):
        shared = np.arange(num_shared, dtype=np.int32) + 1000 * family
        if family == 2:
            shared[:100] -= 1000
        row[:num_shared] = shared
    return tables


sequences = st.lists(
    st.tuples(
        st.one_of(
            st.integers(0, 3 * SPLIT), st.sampled_from([0, 1, SPLIT, SPLIT + 1, 2 * SPLIT, 3000])
        ),
        st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 64, 65, 100, 128, 192])),
    ),
    max_size=12,
)


@given(sequences, st.sampled_from([16, 24, 256]), st.sampled_from([1, 2, 5, 8]))
def test_every_split_of_every_sequence_is_read_once_from_its_own_blocks(
    drawn: list[tuple[int, tuple[int, int]]], block_size: int, members_per_item: int
) -> None:
    lengths = [length for length, _ in drawn]
    tables = tables_of([family for _, family in drawn], 200)
    made = plan(lengths, tables, block_size=block_size, members_per_item=members_per_item)
    rows = list(range(3, 3 + len(lengths)))
    wanted = reads_wanted(rows, lengths, tables[::-1].tolist(), block_size)
    assert reads_planned(made, tables, block_size) == wanted
    assert len(made.items) <= max_items(len(lengths), 3 * SPLIT)
    assert (made.items[:, 3] <= members_per_item).all()


@given(sequences)
def test_partial_results_have_slots_of_their_own(
    drawn: list[tuple[int, tuple[int, int]]],
) -> None:
    tables = tables_of([family for _, family in drawn], 200)
    made = plan([length for length, _ in drawn], tables, members_per_item=8)
    taken: list[int] = []
    for _, length, slot, num_splits in made.members.tolist():
        assert num_splits == max(1, -(-length // SPLIT))
        assert (slot < 0) == (num_splits < 2)
        taken.extend(range(slot, slot + num_splits) if slot >= 0 else [])
    assert sorted(taken) == list(range(len(taken)))
    assert made.num_slots == len(taken)


@given(sequences)
def test_long_items_come_first(drawn: list[tuple[int, tuple[int, int]]]) -> None:
    tables = tables_of([family for _, family in drawn], 200)
    end = plan([length for length, _ in drawn], tables, members_per_item=4).items[:, 1]
    keys = end - np.maximum(end - 1, 0) // SPLIT * SPLIT
    assert (np.diff(keys) <= 0).all()


def test_a_shared_prefix_is_read_once_for_as_many_as_an_item_holds() -> None:
    tables = tables_of([(1, 64)] * 20, 80)
    made = plan([1100] * 20, tables, members_per_item=8)
    assert sorted(made.items[made.items[:, 1] == SPLIT, 3].tolist()) == [4, 8, 8]
    assert len(made.items) == 3 + 20


def test_branches_share_what_they_have_in_common() -> None:
    """Split 0 is everyone's; split 1 differs between the two halves."""
    tables = tables_of([(1, 128), (2, 128)] * 3, 200)
    made = plan([2048] * 6, tables, members_per_item=8)
    counts = {end: sorted(made.items[made.items[:, 1] == end, 3].tolist()) for end in (1024, 2048)}
    assert counts == {1024: [6], 2048: [3, 3]}


def test_equal_first_blocks_do_not_make_a_shared_split() -> None:
    tables = tables_of([(1, 63)] * 2, 80)
    made = plan([1100] * 2, tables, members_per_item=8)
    assert made.items[:, 3].tolist() == [1] * 4


@pytest.mark.parametrize("members_per_item", [1, 8])
def test_a_step_without_sequences_has_no_items(members_per_item: int) -> None:
    made = plan([], np.zeros((1, 4), np.int32), members_per_item=members_per_item)
    assert made.items.shape == (0, 4)
    assert made.members.shape == (0, 4)
