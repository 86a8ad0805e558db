"""The work list of decode attention: which splits are read, and for whom, on the host."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagetwin.kernels.attention_tiles import SPLIT

Int32s = NDArray[np.int32]
Integers = NDArray[np.int64]


class DecodePlan(NamedTuple):
    """int32 [num_items, 4] and [num_seqs, 4]: what they hold is told by kernels.DecodeWork."""

    items: Int32s
    members: Int32s
    num_slots: int
    """Partial results that wait."""


class _Sharing(NamedTuple):
    """Sequences with the same beginning, side by side."""

    order: Integers
    """[num_seqs]: the sequences in the order in which they are members."""
    counts: Integers
    """[num_seqs, num_splits]: for how many members, from this one on, an item reads the full split
    of this one; 0 where the item of an earlier member does."""


def max_items(num_seqs: int, max_model_len: int) -> int:
    """The most items of a step of so many sequences; sharing only makes them fewer."""
    return num_seqs * -(-max_model_len // SPLIT)


def plan_decode(
    query_rows: Int32s,
    seq_lens: Int32s,
    table_rows: Int32s,
    block_tables: Int32s,
    *,
    block_size: int,
    members_per_item: int,
) -> DecodePlan:
    """The items of sequences that have one row each: its number, its length, its table's number.

    `block_tables` [num_rows, max_blocks] are the host's. Every split of every sequence is an item,
    but one item does for up to `members_per_item` sequences whose tables agree over all of a full
    split. Long items come first, so that the last to start are short. A sequence of length 0 is
    padding: its item reads nothing and writes 0.
    """
    lengths = seq_lens.astype(np.int64)
    sharing = None
    if members_per_item > 1:
        sharing = _find_sharing(lengths, table_rows, block_tables, block_size, members_per_item)
        if sharing is not None:
            order = sharing.order
            query_rows, lengths, table_rows = query_rows[order], lengths[order], table_rows[order]
    num_splits = np.maximum(-(-lengths // SPLIT), 1)
    slots = np.where(num_splits > 1, num_splits, 0)
    members = np.empty((len(lengths), 4), np.int32)
    members[:, 0] = query_rows
    members[:, 1] = lengths
    members[:, 2] = np.where(num_splits > 1, slots.cumsum() - slots, -1)
    members[:, 3] = num_splits

    member = np.repeat(np.arange(len(lengths)), num_splits)
    split = np.arange(len(member)) - np.repeat(num_splits.cumsum() - num_splits, num_splits)
    count = np.ones(len(member), np.int64)
    if sharing is not None:
        is_full = split < sharing.counts.shape[1]
        count[is_full] = sharing.counts[member[is_full], split[is_full]]
        member, split, count = member[count > 0], split[count > 0], count[count > 0]
    start = split * SPLIT
    end = np.minimum(start + SPLIT, lengths[member])
    by_length = np.argsort(start - end, kind="stable")
    items = np.empty((len(member), 4), np.int32)
    items[:, 0] = table_rows[member]
    items[:, 1] = end
    items[:, 2] = member
    items[:, 3] = count
    return DecodePlan(items[by_length], members, int(slots.sum()))


def _find_sharing(
    lengths: Integers,
    table_rows: Int32s,
    block_tables: Int32s,
    block_size: int,
    members_per_item: int,
) -> _Sharing | None:
    """None if no two sequences begin with the same full split: found out at a glance.

    Splits are compared by their last blocks, and then in full. Where prefix caching has put equal
    last blocks, all before them are equal; tables that agree elsewhere may go unnoticed.
    """
    is_long = lengths >= SPLIT
    if is_long.sum() < 2:
        return None
    last_blocks = block_tables[table_rows[is_long], (SPLIT - 1) // block_size]
    last_blocks.sort()
    if not (last_blocks[1:] == last_blocks[:-1]).any():
        return None
    num_full = lengths // SPLIT
    split = np.arange(num_full.max())
    last_column = (split * SPLIT + SPLIT - 1) // block_size
    keys = np.where(split < num_full[:, None], block_tables[table_rows[:, None], last_column], -1)
    order = np.lexsort(keys.T[::-1])
    keys, rows = keys[order], table_rows[order]

    is_same = np.zeros(keys.shape, bool)
    is_same[1:] = (keys[1:] == keys[:-1]) & (keys[1:] >= 0)
    later, at = is_same.nonzero()
    columns = last_column[at][:, None] - np.arange((SPLIT - 1) // block_size + 2)
    columns = np.maximum(columns, at[:, None] * SPLIT // block_size)
    blocks = (block_tables[rows[member][:, None], columns] for member in (later, later - 1))
    is_same[later, at] = np.equal(*blocks).all(1)

    member = np.arange(len(rows))[:, None]
    run = np.maximum.accumulate(np.where(is_same, 0, member), 0)
    is_first = (member - run) % members_per_item == 0
    following = np.full((len(rows) + 1, len(split)), len(rows))
    following[:-1] = np.where(is_first, member, len(rows))
    following = np.minimum.accumulate(following[::-1], 0)[::-1]
    return _Sharing(order, np.where(is_first, following[1:] - member, 0))
