"""Inputs in one copy: what is sent is what the views show, and shapes alone decide where."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pagetwin.engine.staging import StagingBuffer

CPU = torch.device("cpu")


def some_arrays() -> st.SearchStrategy[dict[str, np.ndarray]]:
    """One to six arrays of one or two dimensions, empty ones included; shrinks to few and small."""
    kinds = st.sampled_from([np.int32, np.int64])
    shapes = array_shapes(max_dims=2, min_side=0, max_side=5)
    array = kinds.flatmap(lambda kind: arrays(kind, shapes))
    return st.dictionaries(st.text("abc", min_size=1), array, min_size=1, max_size=6)


@given(some_arrays(), some_arrays())
def test_views_show_what_was_sent_last(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> None:
    size = max(StagingBuffer.num_bytes_for(first), StagingBuffer.num_bytes_for(second))
    buffer = StagingBuffer(size, CPU)
    for sent in (first, second):
        buffer.send(sent)
        views = buffer.views(sent)
        assert list(views) == list(sent)
        for name, array in sent.items():
            np.testing.assert_array_equal(views[name].numpy(), array)
            assert views[name].numpy().dtype == array.dtype
            assert views[name].data_ptr() % 16 == 0 or not array.size


def test_views_of_equal_shapes_stay_where_they_are() -> None:
    buffer = StagingBuffer(256, CPU)
    numbers: dict[str, Any] = {"a": np.arange(3, dtype=np.int32), "b": np.arange(2)}
    buffer.send(numbers)
    views = buffer.views(numbers)
    buffer.send({"a": -numbers["a"], "b": 10 + numbers["b"]})
    assert views["a"].tolist() == [0, -1, -2]
    assert views["b"].tolist() == [10, 11]


def test_the_sender_may_change_its_arrays_at_once() -> None:
    buffer = StagingBuffer(64, CPU)
    numbers = {"a": np.arange(3)}
    buffer.send(numbers)
    views = buffer.views(numbers)
    numbers["a"][:] = 7
    assert views["a"].tolist() == [0, 1, 2]


def test_more_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(AssertionError, match="160 bytes of inputs for a buffer of 64"):
        StagingBuffer(64, CPU).send({"a": np.arange(20)})
