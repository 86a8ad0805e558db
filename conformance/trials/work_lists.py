"""The work lists of attention kernels, without the kernels: which keys are read, and for whom.

A list is right if it has each row see each of its keys once, where they lie, whatever the items
are; that is what is judged here, from the lists alone.
"""

from collections import Counter
from collections.abc import Iterator
from random import Random

import numpy as np
from numpy.typing import NDArray

from pagetwin.conformance.properties import Violation, violation
from pagetwin.engine.attention.decode_plan import DecodePlan, max_items, plan_decode
from pagetwin.engine.attention.prefill_plan import plan_prefill
from pagetwin.kernels.attention_tiles import SPLIT

ID = "num.work-lists"
NUM_BLOCKS = 4000

Int32s = NDArray[np.int32]


def judge_work_lists(seed: int, index: int) -> list[Violation]:
    """The lists of one step of decodes, and of one step of chunks."""
    random = Random(f"work lists {seed} {index}")
    try:
        return [*_judge_decodes(random), *_judge_chunks(random)]
    except Exception as error:  # whatever it is: the step is a valid one
        message = f"planning raised {type(error).__name__}: {error}"
        return [violation("life.no-crash", -1, message)]


def _judge_decodes(random: Random) -> Iterator[Violation]:
    block_size = random.choice((16, 32, 64))
    lengths = [_length(random) for _ in range(random.randint(1, 9))]
    tables = _tables(random, lengths, block_size)
    rows = random.sample(range(len(lengths) + 3), len(lengths))
    block_tables = np.zeros((len(lengths) + 3, tables.shape[1]), np.int32)
    block_tables[rows] = tables
    members_per_item = random.choice((1, 2, 4))
    query_rows = np.array(random.sample(range(20), len(lengths)), np.int32)
    plan = plan_decode(
        query_rows,
        np.array(lengths, np.int32),
        np.array(rows, np.int32),
        block_tables,
        block_size=block_size,
        members_per_item=members_per_item,
    )
    due = dict(zip(query_rows.tolist(), zip(lengths, rows, strict=True), strict=True))
    for what in _wrong_decodes(plan, due, block_tables, block_size, members_per_item):
        yield violation(ID, -1, what, lengths=lengths, rows=rows, block_size=block_size)


def _wrong_decodes(
    plan: DecodePlan,
    due: dict[int, tuple[int, int]],
    block_tables: Int32s,
    block_size: int,
    members_per_item: int,
) -> Iterator[str]:
    """`due`: length and row in the tables, by the row of the queries."""
    members = plan.members.tolist()
    if sorted(member[0] for member in members) != sorted(due):
        yield "the members are not the step's rows"
        return
    longest = max([1, *(length for length, _ in due.values())])
    if len(plan.items) > max_items(len(members), longest):
        yield "more items than there may be"
    seen: Counter[tuple[int, int]] = Counter()
    for row, end, first, count in plan.items.tolist():
        if not 1 <= count <= members_per_item:
            yield f"an item has {count} members"
        start = max(0, end - 1) // SPLIT * SPLIT
        columns = slice(start // block_size, -(-end // block_size))
        for member in range(first, min(first + count, len(members))):
            length, own_row = due[members[member][0]]
            seen[member, start // SPLIT] += 1
            if end != min(start + SPLIT, length):
                yield f"an item reads keys {start}..{end} for a sequence of {length}"
            if (block_tables[row, columns] != block_tables[own_row, columns]).any():
                yield "an item reads the blocks of another sequence"
    slots: Counter[int] = Counter()
    for member, (query_row, length, slot, num_splits) in enumerate(members):
        splits = max(1, -(-due[query_row][0] // SPLIT))
        if (length, num_splits) != (due[query_row][0], splits) or (slot >= 0) != (splits > 1):
            yield f"a member of {due[query_row][0]} keys has {num_splits} splits, slot {slot}"
        if slot >= 0:
            slots.update(range(slot, slot + num_splits))
        if any(seen.pop((member, split), 0) != 1 for split in range(splits)):
            yield "a split is read for a sequence not once"
    if seen:
        yield "splits are read that a sequence does not have"
    if slots and (max(slots.values()) > 1 or max(slots) >= plan.num_slots):
        yield "partial results wait in the same place, or in none"


def _judge_chunks(random: Random) -> Iterator[Violation]:
    block_m = random.choice((16, 32, 64))
    chunks = [_chunk(random, block_m) for _ in range(random.randint(1, 6))]
    rows = [random.randrange(50) for _ in chunks]
    tiles = plan_prefill([n for n, _ in chunks], [length for _, length in chunks], rows, block_m)
    due: Counter[tuple[int, int, int]] = Counter()
    first = 0
    for (num_rows, length), row in zip(chunks, rows, strict=True):
        if num_rows > 1 and length:
            due.update((first + i, length - num_rows + i, row) for i in range(num_rows))
        first += num_rows
    got: Counter[tuple[int, int, int]] = Counter()
    for first_row, position, row, count in tiles.tolist():
        got.update((first_row + i, position + i, row) for i in range(count))
    if got != due or (len(tiles) and tiles[:, 3].max() > block_m):
        lost, more = sorted((due - got).elements())[:3], sorted((got - due).elements())[:3]
        yield violation(
            ID, -1, "tiles are not the chunks' rows", chunks=chunks, lost=lost, superfluous=more
        )


def _length(random: Random) -> int:
    edge = random.choice((0, 1, 1, 2, 3)) * SPLIT + random.choice((-1, 0, 1))
    return max(0, random.choice((edge, edge, random.randrange(2 * SPLIT))))


def _chunk(random: Random, block_m: int) -> tuple[int, int]:
    """Rows, and tokens with what was computed before; now and then a decode, or padding."""
    if random.random() < 0.15:
        return random.choice((1, 5)), 0
    edge = random.choice((0, 1, 2)) * block_m + random.choice((-1, 0, 1))
    num_rows = max(1, random.choice((1, edge, random.randrange(1, 3 * block_m))))
    return num_rows, num_rows + random.choice((0, 0, 7, 300))


def _tables(random: Random, lengths: list[int], block_size: int) -> Int32s:
    """Block tables: some begin as an earlier one does, as hits make them; and, as nothing should
    but an eviction may, some differ from it in a block in the middle alone."""
    width = -(-(4 * SPLIT) // block_size)
    tables = np.zeros((len(lengths), width), np.int32)
    for i in range(len(lengths)):
        tables[i] = random.sample(range(1, NUM_BLOCKS), width)
        if i and random.random() < 0.7:
            other = random.randrange(i)
            shared = random.choice((width, width // 2, SPLIT // block_size, 3))
            tables[i, :shared] = tables[other, :shared]
            if random.random() < 0.3:
                tables[i, random.randrange(shared)] = random.randrange(1, NUM_BLOCKS)
    return tables
