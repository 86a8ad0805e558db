"""What attention must know of one step: which token is whose, and where keys and values are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from pagetwin.engine.attention.backend import AttentionBackend
    from pagetwin.kernels.paged_decode import DecodeWork
    from pagetwin.kernels.paged_prefill import PrefillWork


@dataclass(frozen=True)
class AttentionMetadata:
    """One step's layout, shared by all layers; a new object for each step, never changed.

    The rows of a step are the scheduled tokens of each sequence, one sequence after the other.
    Row r of sequence i, with r in [query_start_loc[i], query_start_loc[i + 1]), stands at
    position seq_lens[i] - query_start_loc[i + 1] + r and sees the positions up to its own.
    Rows beyond query_start_loc[-1] are padding, and so is a sequence without rows or with
    seq_lens 0: padding attends to nothing and its output is 0.
    """

    slot_mapping: Tensor
    """int64 [num_tokens]: block_id * block_size + offset for each row's K and V; -1 = no write."""
    query_start_loc: Tensor
    """int32 [num_seqs + 1]: first row of each sequence, then the number of rows."""
    seq_lens: Tensor
    """int32 [num_seqs]: tokens of each sequence whose K and V are in the cache after the step."""
    block_tables: Tensor
    """int32 [num_rows, max_blocks]: entry j holds positions [j * B, (j + 1) * B); 0 = unused."""
    table_rows: Tensor
    """int32 [num_seqs]: the row of block_tables that is each sequence's."""
    max_query_len: int
    """Most rows of one sequence."""
    max_seq_len: int
    """Largest of seq_lens, or more."""
    decode_work: "DecodeWork | None" = None
    """What the sequences with one row read, if it was worked out with the step's inputs."""
    prefill_work: "PrefillWork | None" = None
    """Likewise for the sequences with more rows."""


@dataclass(frozen=True)
class SampledRows:
    """The rows whose hidden states are wanted, and the step as it is for their queries alone."""

    index: Tensor
    """int64 [num_sampled_rows], in the order that is wanted."""
    metadata: AttentionMetadata
    """Each of these rows as the only one of a sequence that ends with it. Keys and values of the
    others are in the cache, but nothing is asked of them."""


@dataclass(frozen=True)
class ForwardContext:
    """What a model's layers need beside their inputs; passed explicitly."""

    backend: "AttentionBackend"
    metadata: AttentionMetadata
    kv_caches: Sequence[Tensor]
    """One per layer: [2, num_blocks, block_size, num_kv_heads, head_size], keys then values."""
    sampled: SampledRows | None = None
    """None = the hidden states of all rows are wanted."""
    token_table: Tensor | None = None
    """int32 [num_table_rows, max_model_len]: where a token that the host does not know yet stands,
    at its position. None if it knows all."""
    token_rows: Tensor | None = None
    """int32 [num_tokens]: the row of token_table of each token."""

    @property
    def sampled_rows(self) -> Tensor | None:
        """int64: the rows whose hidden states are wanted, in this order; None = all rows."""
        return None if self.sampled is None else self.sampled.index
