"""Attention on a GPU: cache writes and decode by our Triton kernels, chunks by torch."""

import triton
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata
from pagetwin.engine.attention.torch_backend import TorchBackend
from pagetwin.kernels.kv_write import write_kv
from pagetwin.kernels.paged_decode import paged_decode


class TritonBackend(TorchBackend):
    """CUDA devices; head sizes up to 256; float32, float16 and bfloat16.

    Also a CPU, slowly, where Triton itself is told to interpret (TRITON_INTERPRET=1).
    """

    name = "triton"

    @classmethod
    def rejection(cls, spec: AttentionSpec) -> str | None:
        if spec.device_type == "cpu" and not triton.knobs.runtime.interpret:
            return "a CPU cannot run its kernels (except for tests, with TRITON_INTERPRET=1)"
        if spec.device_type not in ("cpu", "cuda"):
            return f"its kernels run on CUDA devices, not on {spec.device_type!r}"
        if spec.dtype.itemsize > 4:
            return f"it accumulates in float32, too coarse for {spec.dtype}"
        if spec.head_size > 256:
            return f"its kernels take head sizes up to 256, not {spec.head_size}"
        return super().rejection(spec)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        *,
        scale: float,
        sliding_window: int = 0,
    ) -> Tensor:
        write_kv(k, v, kv_cache, metadata.slot_mapping)
        out = q.new_zeros(q.shape)
        paged_decode(
            out,
            q,
            kv_cache,
            metadata.block_tables,
            metadata.query_start_loc,
            metadata.seq_lens,
            metadata.max_seq_len,
            scale,
            sliding_window,
            self.spec.soft_cap,
        )
        if metadata.max_query_len > 1:
            inputs = self._inputs(q, kv_cache, scale)
            tiles = self._tiles(metadata, kv_cache.shape[2], sliding_window)
            self._attend_chunks(out.view(inputs.q.shape), inputs, tiles.chunks)
        return out
