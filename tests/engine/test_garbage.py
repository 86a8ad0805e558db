"""Collections pass over imports alone: what is made later is collected as ever."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from pagetwin.engine.garbage import leave_imports_out_of_collections


class Node:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def not_yet_done() -> Iterator[None]:
    leave_imports_out_of_collections.cache_clear()
    yield
    gc.unfreeze()
    leave_imports_out_of_collections.cache_clear()


def test_what_is_made_later_is_collected(not_yet_done: None) -> None:
    kept, garbage = Node(), weakref.ref(Node())
    leave_imports_out_of_collections()
    assert garbage() is None, "what was garbage before is not kept"
    assert gc.get_freeze_count() > 10_000
    assert all(found is not kept for found in gc.get_objects())
    later = weakref.ref(Node())
    leave_imports_out_of_collections()
    gc.collect()
    assert later() is None
