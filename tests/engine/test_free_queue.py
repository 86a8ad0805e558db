"""The free queue against a plain deque."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.engine.free_queue import FreeQueue


@given(st.integers(1, 8), st.lists(st.integers(0, 7), max_size=60))
def test_takes_puts_and_removals_match_a_deque(num_ids: int, choices: list[int]) -> None:
    queue, model = FreeQueue(num_ids, first=1), deque(range(1, num_ids))
    out: list[int] = []
    for choice in choices:
        if choice < 3 and model:
            out.append(queue.take())
            assert out[-1] == model.popleft()
        elif choice < 5 and out:
            queue.put(out[0])
            model.append(out.pop(0))
        elif model:
            block = model[choice % len(model)]
            queue.remove(block)
            model.remove(block)
            out.append(block)
        queue.check_invariants()
        assert list(queue) == list(model)


def test_taking_from_an_empty_queue_is_an_error() -> None:
    with pytest.raises(IndexError, match=r"^take from an empty free queue"):
        FreeQueue(1, first=1).take()
