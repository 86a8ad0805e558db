"""Attention by the package flashinfer (Ye et al. 2025), where it is installed."""

import flashinfer
import numpy as np
import torch
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata

_WORKSPACE_BYTES = 2**27
_HEAD_SIZES = (64, 128, 256)


class FlashInferBackend(AttentionBackend):
    """CUDA devices; float16 and bfloat16; head sizes 64, 128 and 256."""

    name = "flashinfer"

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(spec)
        workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=spec.device_type)
        self._wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        self._planned: tuple[AttentionMetadata, float, int] | None = None

    @classmethod
    def rejection(cls, spec: AttentionSpec) -> str | None:
        if spec.device_type != "cuda":
            return f"flashinfer runs on CUDA devices, not on {spec.device_type!r}"
        if spec.dtype not in (torch.float16, torch.bfloat16):
            return f"flashinfer computes in float16 and bfloat16, not in {spec.dtype}"
        if spec.head_size not in _HEAD_SIZES:
            sizes = ", ".join(map(str, _HEAD_SIZES))
            return f"flashinfer takes head sizes {sizes}, not {spec.head_size}"
        if spec.needs_alibi or spec.needs_sinks:
            return "it is used here without ALiBi and without attention sinks"
        return None

    def forward(
        self,
        q: Tensor,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        *,
        scale: float,
        sliding_window: int = 0,
    ) -> Tensor:
        # A plan holds for all layers that look alike; it is made anew where the window changes.
        wanted = metadata, scale, sliding_window
        planned = self._planned
        if planned is None or planned[0] is not metadata or planned[1:] != wanted[1:]:
            self._plan(metadata, scale, sliding_window)
            self._planned = wanted
        out: Tensor = self._wrapper.run(q.contiguous(), (kv_cache[0], kv_cache[1]))
        return out

    def _plan(self, metadata: AttentionMetadata, scale: float, sliding_window: int) -> None:
        spec = self.spec
        lengths = metadata.seq_lens.cpu().numpy()
        num_blocks = -(-lengths // spec.block_size)
        tables = metadata.block_tables[metadata.table_rows.long()].cpu().numpy()
        used = np.arange(tables.shape[1]) < num_blocks[:, None]
        block_starts = np.concatenate(([0], num_blocks.cumsum())).astype(np.int32)
        last_lengths = (lengths - (num_blocks - 1) * spec.block_size).astype(np.int32)
        self._wrapper.plan(
            metadata.query_start_loc.cpu(),
            torch.from_numpy(block_starts),
            torch.from_numpy(tables[used]).to(metadata.block_tables.device),
            torch.from_numpy(last_lengths),
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_size,
            spec.block_size,
            causal=True,
            sm_scale=scale,
            window_left=sliding_window - 1 if sliding_window else -1,
            logits_soft_cap=spec.soft_cap or None,
            q_data_type=spec.dtype,
            kv_data_type=spec.dtype,
        )
