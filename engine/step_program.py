"""The device's side of a step: forward pass, logits, drawn tokens; what a CUDA graph captures."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend
from pagetwin.engine.attention.metadata import AttentionMetadata, ForwardContext, SampledRows
from pagetwin.engine.cuda_graphs import Variant
from pagetwin.engine.device_sampler import DeviceSampler
from pagetwin.engine.device_tables import DeviceTables
from pagetwin.engine.models.spec import Model
from pagetwin.engine.step_inputs import StepInputs
from pagetwin.kernels.linear import no_split_k

Arrays = dict[str, NDArray[Any]]

_SAMPLED = "sampled "
"""Before the names of arrays that are about the wanted rows alone."""


@dataclass(frozen=True)
class StepShape:
    """What a step's launches depend on, beside the content of its arrays."""

    max_query_len: int
    max_seq_len: int
    num_draws: int
    """Rows of logits."""
    is_graph: bool
    """Whether the launches must suit any step of these sizes."""


class StepProgram:
    """Launches a step's kernels on inputs that are on the device; waits for nothing.

    `logits`, float32 [max_num_seqs, vocab_size], and `drawn`, int32 [2, max_num_seqs] (tokens,
    and flags of rows whose logits are broken), are written from row 0 on.
    """

    def __init__(
        self,
        model: Model,
        backend: AttentionBackend,
        kv_caches: Sequence[Tensor],
        tables: DeviceTables,
        sampler: DeviceSampler,
        *,
        is_batch_invariant: bool,
    ) -> None:
        self._products = no_split_k if is_batch_invariant else nullcontext
        self._model = model
        self._backend = backend
        self._kv_caches = kv_caches
        self._tables = tables
        self._sampler = sampler
        max_num_seqs, device = len(tables.tokens), tables.tokens.device
        shape = (max_num_seqs, model.spec.vocab_size)
        self.logits = torch.zeros(shape, dtype=torch.float32, device=device)
        self.drawn = torch.zeros(2, max_num_seqs, dtype=torch.int32, device=device)

    def arrays(
        self,
        inputs: StepInputs,
        block_tables: NDArray[np.int32],
        wanted_rows: NDArray[np.int64] | None,
        words: NDArray[np.int32],
        *,
        logits_rows: NDArray[np.int64] | None = None,
        is_graph: bool,
    ) -> Arrays:
        """What must be sent; `wanted_rows` None = all rows' hidden states are wanted.

        `logits_rows` are whose logits each draw is from, where several are from the same.

        `block_tables` are the host's, [max_num_seqs, max_blocks]; `words` the sampler's.
        """
        arrays: Arrays = {
            "input_ids": inputs.input_ids,
            "positions": inputs.positions,
            "token_rows": inputs.token_rows,
            "words": words,
        }
        arrays |= self._layout(inputs, block_tables, is_graph=is_graph)
        if logits_rows is not None:
            arrays["logits_rows"] = logits_rows
        if wanted_rows is not None:
            arrays["wanted_rows"] = wanted_rows
            layout = self._layout(inputs.of_rows(wanted_rows), block_tables, is_graph=is_graph)
            arrays |= {_SAMPLED + name: array for name, array in layout.items()}
        return arrays

    def _layout(
        self, inputs: StepInputs, block_tables: NDArray[np.int32], *, is_graph: bool
    ) -> Arrays:
        """What _metadata is made of."""
        arrays: Arrays = {
            "slot_mapping": inputs.slot_mapping,
            "query_start_loc": inputs.query_start_loc,
            "seq_lens": inputs.seq_lens,
            "table_rows": inputs.rows,
        }
        return arrays | self._backend.plan(inputs, block_tables, is_graph=is_graph)

    def _metadata(
        self, views: Mapping[str, Tensor], shape: StepShape, *, max_query_len: int
    ) -> AttentionMetadata:
        return AttentionMetadata(
            slot_mapping=views["slot_mapping"],
            query_start_loc=views["query_start_loc"],
            seq_lens=views["seq_lens"],
            block_tables=self._tables.block_tables,
            table_rows=views["table_rows"],
            max_query_len=max_query_len,
            max_seq_len=shape.max_seq_len,
            **self._backend.work(views, is_graph=shape.is_graph),
        )

    def run(self, views: Mapping[str, Tensor], shape: StepShape, variant: Variant) -> Tensor:
        """Launches everything; the hidden states of the wanted rows."""
        sampled = None
        if "wanted_rows" in views:
            layout = {n.removeprefix(_SAMPLED): v for n, v in views.items() if _SAMPLED in n}
            metadata = self._metadata(layout, shape, max_query_len=1)
            sampled = SampledRows(views["wanted_rows"], metadata)
        context = ForwardContext(
            self._backend,
            self._metadata(views, shape, max_query_len=shape.max_query_len),
            self._kv_caches,
            sampled=sampled,
            token_table=self._tables.tokens,
            token_rows=views["token_rows"],
        )
        with self._products():
            hidden = self._model.forward(views["input_ids"], views["positions"], context)
            if shape.num_draws:
                self.draw(hidden, shape.num_draws, variant, views)
        return hidden

    def draw(
        self, hidden: Tensor, num_draws: int, variant: Variant, views: Mapping[str, Tensor]
    ) -> None:
        """Logits of hidden states [num_rows, hidden_size], and the tokens."""
        logits = self.logits[: len(hidden)]
        self._model.compute_logits(hidden, out=logits)
        if "logits_rows" in views:
            logits = logits[views["logits_rows"]]
        self._sampler.sample(
            logits,
            views["words"],
            self._tables.tokens,
            out=self.drawn[0, :num_draws],
            failed=self.drawn[1, :num_draws],
            greedy_only=variant == "greedy",
        )
