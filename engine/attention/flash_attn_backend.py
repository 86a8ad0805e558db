"""Attention by the package flash-attn (Dao et al. 2022, 2023), where it is installed."""

import torch
from flash_attn import flash_attn_varlen_func
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata

_BLOCK_MULTIPLE = 256
"""flash-attn reads paged keys in tiles that must lie in one block."""


class FlashAttnBackend(AttentionBackend):
    """CUDA devices; float16 and bfloat16; blocks of 256 tokens or a multiple."""

    name = "flash_attn"

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(spec)
        self._step: tuple[AttentionMetadata, Tensor, Tensor] | None = None

    @classmethod
    def rejection(cls, spec: AttentionSpec) -> str | None:
        if spec.device_type != "cuda":
            return f"flash-attn runs on CUDA devices, not on {spec.device_type!r}"
        if spec.dtype not in (torch.float16, torch.bfloat16):
            return f"flash-attn computes in float16 and bfloat16, not in {spec.dtype}"
        if spec.head_size > 256 or spec.head_size % 8:
            return f"flash-attn takes head sizes to 256 in steps of 8, not {spec.head_size}"
        if spec.block_size % _BLOCK_MULTIPLE:
            return (
                f"flash-attn needs a block_size that is a multiple of {_BLOCK_MULTIPLE}, "
                f"not {spec.block_size}"
            )
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
        tables, key_starts = self._tables(metadata)
        out: Tensor = flash_attn_varlen_func(
            q.contiguous(),
            kv_cache[0],
            kv_cache[1],
            cu_seqlens_q=metadata.query_start_loc,
            cu_seqlens_k=key_starts,
            max_seqlen_q=metadata.max_query_len,
            max_seqlen_k=metadata.max_seq_len,
            softmax_scale=scale,
            causal=True,
            # Positions to the left of a token's own; -1 = all.
            window_size=(sliding_window - 1, 0) if sliding_window else (-1, -1),
            softcap=self.spec.soft_cap,
            block_table=tables,
        )
        return out

    def _tables(self, metadata: AttentionMetadata) -> tuple[Tensor, Tensor]:
        """The sequences' block tables, and the sums of the lengths before each; once a step."""
        if self._step is None or self._step[0] is not metadata:
            width = -(-metadata.max_seq_len // self.spec.block_size)
            rows = metadata.table_rows.long()
            tables = metadata.block_tables[rows, :width].contiguous()
            starts = torch.zeros_like(metadata.query_start_loc)
            torch.cumsum(metadata.seq_lens, 0, dtype=torch.int32, out=starts[1:])
            self._step = metadata, tables, starts
        return self._step[1], self._step[2]
