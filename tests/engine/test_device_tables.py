"""The device's tables hold what the host's batch holds, whatever changed in between."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.engine.device_tables import DeviceTables
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import SamplingRow
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.staging import StagingBuffer

NUM_ROWS, MAX_LEN, MAX_BLOCKS = 3, 8, 5


def new_tables() -> DeviceTables:
    return DeviceTables(NUM_ROWS, MAX_LEN, MAX_BLOCKS, torch.device("cpu"))


def send(tables: DeviceTables) -> None:
    patches = tables.patches()
    buffer = StagingBuffer(StagingBuffer.num_bytes_for(patches), torch.device("cpu"))
    buffer.send(patches)
    tables.apply(buffer.views(patches))


changes = st.tuples(
    st.integers(0, NUM_ROWS - 1),
    st.integers(0, MAX_BLOCKS - 1),
    st.lists(st.integers(1, 99), max_size=MAX_BLOCKS),
)
"""(row, first index, block ids); shrinks to the first row, and to no change."""


@given(st.lists(st.lists(changes, min_size=1), min_size=1))
def test_of_many_changes_of_one_place_the_last_one_holds(
    steps: list[list[tuple[int, int, list[int]]]],
) -> None:
    tables = new_tables()
    expected = np.zeros((NUM_ROWS, MAX_BLOCKS), np.int32)
    for step in steps:
        for row, first, block_ids in step:
            fitting = block_ids[: MAX_BLOCKS - first]
            tables.set_blocks(row, first, fitting)
            expected[row, first : first + len(fitting)] = fitting
        send(tables)
        np.testing.assert_array_equal(tables.block_tables.numpy(), expected)


def sampling_row(**params: Any) -> SamplingRow:
    request = Request(
        request_id="r", prompt_token_ids=(4, 5, 6), sampling_params=SamplingParams(**params)
    )
    return SamplingRow("r/0", request, 0, ())


def test_known_tokens_are_sent_for_requests_with_penalties_alone() -> None:
    tables = new_tables()
    tables.occupy(1, sampling_row(), (4, 5, 6))
    assert tables.patches() == {}
    for penalty in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        tables.occupy(1, sampling_row(**{penalty: 1.5}), (4, 5, 6))
        send(tables)
        assert tables.tokens[1].tolist() == [4, 5, 6, 0, 0, 0, 0, 0]
        tables.tokens.zero_()


def test_nothing_is_sent_twice() -> None:
    tables = new_tables()
    tables.set_blocks(2, 1, (7, 8))
    tables.set_tokens(0, 3, (9,))
    send(tables)
    assert tables.block_tables[2].tolist() == [0, 7, 8, 0, 0]
    assert tables.tokens[0, 3] == 9
    assert tables.patches() == {}


def test_what_was_never_applied_is_sent_with_the_next_step() -> None:
    """A step that found no memory on the way: others still wait for what it was to bring."""
    tables = new_tables()
    tables.set_tokens(0, 3, (9,))
    assert tables.patches()
    tables.set_blocks(2, 1, (7, 8))
    send(tables)
    assert tables.tokens[0, 3] == 9
    assert tables.block_tables[2].tolist() == [0, 7, 8, 0, 0]
    assert tables.patches() == {}
