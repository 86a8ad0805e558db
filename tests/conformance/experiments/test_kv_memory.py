"""What nobody may read may be NaN, and swaps bring back every byte; each breach is found."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from torch import Tensor

from pagetwin.conformance.adapters.memory_session import MemoryOwnSession
from pagetwin.conformance.adapters.protocol import Adapter, MemorySession, SessionConfig
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.experiments.kv_memory import (
    STALE,
    SWAPPED,
    KVMemory,
    judge_stale,
    judge_swapped,
)
from pagetwin.conformance.faults.settings import settings
from pagetwin.conformance.properties import CATALOGUE
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.engine import kv_cache
from pagetwin.engine.block_pool import BlockPool
from pagetwin.engine.kv_cache import KVCache
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import BlockCopy


@pytest.fixture(scope="module")
def engine(one_thread: None) -> Iterator[Adapter]:
    adapter = make_adapter("pagetwin:random?device=cpu")
    yield adapter
    adapter.close()


def test_our_engine_passes_and_each_goal_is_met(
    engine: Adapter, evidence_of: Callable[..., list[Evidence]]
) -> None:
    pieces = evidence_of(KVMemory(), engine)
    assert all(piece.violation is None for piece in pieces)
    for property_id in (STALE, SWAPPED):
        for goal in CATALOGUE[property_id].goals:
            happened = sum(p.goals[goal] for p in pieces if p.property_id == property_id)
            assert happened > 10, goal


def test_an_engine_that_calls_a_cached_block_empty_reads_what_was_spoilt(
    engine: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: the spoiler reaches what the engine computes with."""

    def all_free(self: Scheduler) -> list[int]:
        return list(self._state.blocks.pool._free)

    monkeypatch.setattr(Scheduler, "empty_blocks", all_free)
    crowd = settings(engine.capabilities())["recompute"]
    assert judge_stale(engine, crowd).violation is not None


def test_bytes_that_a_swap_loses_are_missed(
    engine: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = kv_cache._move

    def rounded(source: Tensor, target: Tensor, pairs: Sequence[BlockCopy]) -> None:
        """Through half precision, as a smaller host pool would be tempted to do."""
        move(source.bfloat16().float(), target, pairs)

    monkeypatch.setattr(kv_cache, "_move", rounded)
    found = judge_swapped(engine, settings(engine.capabilities())["swap"]).violation
    assert found is not None
    assert "is not block" in found.message


def test_blocks_are_read_as_copies_and_poisoned_in_place(engine: Adapter) -> None:
    session = engine.open(SessionConfig())
    assert isinstance(session, MemorySession)
    assert isinstance(session, MemoryOwnSession)
    before = session.read_block(3)
    assert session.empty_blocks()[:3] == [1, 2, 3]
    session.poison(3, first_slot=2)
    after = session.read_block(3)
    assert not before.isnan().any()
    assert not after[:, :, :2].isnan().any()
    assert after[:, :, 2:].isnan().all()
    assert isinstance(session._kv_cache, KVCache)
    session.close()


def test_empty_blocks_are_neither_held_nor_cached() -> None:
    pool = BlockPool(5)
    assert pool.empty_blocks == [1, 2, 3, 4]
    held = pool.take()
    assert pool.empty_blocks == [2, 3, 4]
    pool.release(held)
    assert pool.empty_blocks == [2, 3, 4, 1]
