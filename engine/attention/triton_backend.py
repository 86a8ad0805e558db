"""Attention by our own Triton kernels: rows alone in their sequence (decode), and chunks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.attention.decode_plan import max_items, plan_decode
from pagetwin.engine.attention.metadata import AttentionMetadata
from pagetwin.engine.attention.prefill_plan import plan_prefill
from pagetwin.engine.step_inputs import StepInputs
from pagetwin.kernels.attention_tiles import SPLIT
from pagetwin.kernels.paged_decode import (
    DecodeScratch,
    DecodeWork,
    members_per_item,
    paged_decode,
)
from pagetwin.kernels.paged_prefill import BLOCK_M, PrefillWork, paged_prefill

Arrays = dict[str, NDArray[Any]]


class TritonBackend(AttentionBackend):
    """CUDA devices; head sizes up to 256; float32, float16 and bfloat16.

    A row's result depends on its own sequence alone, to the bit: not on the batch, the chunks it
    came in, nor on where its blocks are (kernels/attention_tiles.py). Also runs on a CPU, slowly,
    where Triton itself is told to interpret (TRITON_INTERPRET=1).
    """

    name = "triton"
    is_capturable = True

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(spec)
        self._scratch: list[DecodeScratch] = []
        self._planned: tuple[AttentionMetadata, dict[str, Any]] | None = None

    @classmethod
    def rejection(cls, spec: AttentionSpec) -> str | None:
        if spec.device_type == "cpu" and not triton.knobs.runtime.interpret:
            return "a CPU cannot run its kernels (except for tests, with TRITON_INTERPRET=1)"
        if spec.device_type not in ("cpu", "cuda"):
            return f"its kernels run on CUDA devices, not on {spec.device_type!r}"
        if not spec.dtype.is_floating_point or not 2 <= spec.dtype.itemsize <= 4:
            return f"it computes in float32, float16 and bfloat16, not in {spec.dtype}"
        if spec.head_size > 256:
            return f"its kernels take head sizes up to 256, not {spec.head_size}"
        if spec.needs_alibi:
            return "it has no ALiBi"
        if spec.needs_sinks:
            return "it has no attention sinks"
        return None

    def plan(
        self, inputs: StepInputs, block_tables: NDArray[np.int32], *, is_graph: bool
    ) -> Arrays:
        return self._plan(
            inputs.query_start_loc, inputs.seq_lens, inputs.rows, block_tables, is_graph=is_graph
        )

    def _plan(
        self,
        query_start_loc: NDArray[np.int32],
        seq_lens: NDArray[np.int32],
        table_rows: NDArray[np.int32],
        block_tables: NDArray[np.int32],
        *,
        is_graph: bool,
    ) -> Arrays:
        query_lens = np.diff(query_start_loc)
        is_single = query_lens == 1
        arrays: Arrays = {}
        if is_single.any():
            decode = plan_decode(
                query_start_loc[:-1][is_single],
                seq_lens[is_single],
                table_rows[is_single],
                block_tables,
                block_size=self.spec.block_size,
                members_per_item=members_per_item(self.spec.num_heads // self.spec.num_kv_heads),
            )
            max_model_len = block_tables.shape[1] * self.spec.block_size
            capacity = max_items(len(decode.members), max_model_len)
            items = np.zeros((capacity, 4), np.int32) if is_graph else decode.items
            items[: len(decode.items)] = decode.items
            arrays["decode_items"] = items
            arrays["decode_members"] = decode.members
            arrays["decode_num_items"] = np.array([len(decode.items)], np.int32)
            num_slots = capacity if is_graph else decode.num_slots
            self._reserve(num_slots if max_model_len > SPLIT else 0)
        if not is_single.all():
            arrays["prefill_tiles"] = plan_prefill(query_lens, seq_lens, table_rows, BLOCK_M)
        return arrays

    def work(self, views: Mapping[str, Tensor], *, is_graph: bool) -> dict[str, Any]:
        work: dict[str, Any] = {}
        if "decode_items" in views:
            work["decode_work"] = DecodeWork(
                views["decode_items"], views["decode_members"], views["decode_num_items"]
            )
        if "prefill_tiles" in views:
            work["prefill_work"] = PrefillWork(views["prefill_tiles"], 2**31 - 1)
        return work

    def forward(
        self,
        q: Tensor,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        *,
        scale: float,
        sliding_window: int = 0,
    ) -> Tensor:
        decode_work, prefill_work = metadata.decode_work, metadata.prefill_work
        if decode_work is None and prefill_work is None:
            work = self._work_of(metadata)
            decode_work, prefill_work = work.get("decode_work"), work.get("prefill_work")
            out = q.new_zeros(q.shape)
        else:
            out = q.new_empty(q.shape)
        tables, soft_cap = metadata.block_tables, self.spec.soft_cap
        if decode_work is not None:
            scratch = self._scratch[-1]
            paged_decode(
                out, q, kv_cache, tables, decode_work, scratch, scale, sliding_window, soft_cap
            )
        if prefill_work is not None:
            prefill_work = PrefillWork(prefill_work.tiles, metadata.max_seq_len)
            paged_prefill(out, q, kv_cache, tables, prefill_work, scale, sliding_window, soft_cap)
        return out

    def _work_of(self, metadata: AttentionMetadata) -> dict[str, Any]:
        """The work of a step that came without: planned once for all layers, which waits."""
        if self._planned is None or self._planned[0] is not metadata:
            device = metadata.block_tables.device
            arrays = self._plan(
                metadata.query_start_loc.cpu().numpy(),
                metadata.seq_lens.cpu().numpy(),
                metadata.table_rows.cpu().numpy(),
                metadata.block_tables.cpu().numpy(),
                is_graph=False,
            )
            views = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            self._planned = metadata, self.work(views, is_graph=False)
        return self._planned[1]

    def _reserve(self, num_slots: int) -> None:
        """Room for so many partial results. What graphs were captured with stays where it is."""
        reserved = len(self._scratch[-1].stats) if self._scratch else -1
        if reserved < num_slots:
            spec = self.spec
            self._scratch.append(
                DecodeScratch.of(
                    max(num_slots, 2 * reserved),
                    spec.num_heads,
                    spec.num_kv_heads,
                    spec.head_size,
                    torch.device(spec.device_type),
                )
            )
