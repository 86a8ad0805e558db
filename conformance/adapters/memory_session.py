"""A session of our engine whose KV memory can be looked into."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pagetwin.conformance.adapters.own_session import OwnSession
from pagetwin.conformance.adapters.protocol import EngineInfo
from pagetwin.engine.kv_cache import KVCache
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.trace import HistoryWriter


class MemoryOwnSession(OwnSession):
    """A MemorySession."""

    def __init__(
        self, info: EngineInfo, engine: LLMEngine, history: HistoryWriter, kv_cache: KVCache
    ) -> None:
        super().__init__(info, engine, history)
        self._kv_cache = kv_cache

    def empty_blocks(self) -> Sequence[int]:
        return self.engine.core.scheduler.empty_blocks()

    def read_block(self, block_id: int, *, of_host: bool = False) -> Tensor:
        self._kv_cache.synchronize()
        pool = self._kv_cache.host_pool if of_host else self._kv_cache.device_pool
        return pool[:, :, block_id].to("cpu", copy=True)

    def poison(self, block_id: int, *, first_slot: int = 0) -> None:
        self._kv_cache.device_pool[:, :, block_id, first_slot:] = torch.nan
