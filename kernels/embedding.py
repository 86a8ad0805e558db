"""Gathers the embeddings of tokens, of which some may be known to the device alone (Triton)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.pdl import start_next, wait_for_previous

TILE = 1024


@triton.jit
def embed_tokens_kernel(
    token_ids_ptr,
    table_ptr,
    token_table_ptr,
    token_rows_ptr,
    positions_ptr,
    out_ptr,
    vocab_size,
    table_stride,
    token_table_stride,
    SIZE: tl.constexpr,
    HAS_TOKEN_TABLE: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per token and TILE channels."""
    start_next(PDL)
    wait_for_previous(PDL)
    i = tl.program_id(0).to(tl.int64)
    token = tl.load(token_ids_ptr + i)
    if HAS_TOKEN_TABLE:
        unknown = token < 0
        row = tl.load(token_rows_ptr + i, mask=unknown, other=0).to(tl.int64)
        place = row * token_table_stride + tl.load(positions_ptr + i, mask=unknown, other=0)
        found = tl.load(token_table_ptr + place, mask=unknown, other=0)
        token = tl.where(unknown, found.to(tl.int64), token)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < SIZE
    is_token = (token >= 0) & (token < vocab_size)
    x = tl.load(table_ptr + token * table_stride + column, mask=inside & is_token, other=0.0)
    tl.store(out_ptr + i * SIZE + column, x, mask=inside)


_embed_tokens = Launcher(embed_tokens_kernel)


def embed_tokens(
    token_ids: Tensor,
    table: Tensor,
    token_table: Tensor | None = None,
    token_rows: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """As reference_layers.embed_tokens: token_ids int64 [T], table [vocab_size, H], to [T, H].

    token_table int32 [num_rows, max_model_len] with token_rows int32 [T] and positions int64 [T],
    or None where no id is negative but padding's.
    """
    num_tokens, size = len(token_ids), table.shape[1]
    out = torch.empty((num_tokens, size), dtype=table.dtype, device=table.device)
    if num_tokens:
        _embed_tokens(
            (num_tokens, triton.cdiv(size, TILE), 1),
            (
                token_ids,
                table,
                token_table,
                token_rows,
                positions,
                out,
                table.shape[0],
                table.stride(0),
                0 if token_table is None else token_table.stride(0),
            ),
            (size, token_table is not None, TILE),
        )
    return out


embed_tokens_op = torch.library.custom_op("pagetwin::embed_tokens", embed_tokens, mutates_args=())
embed_tokens_op.register_fake(
    lambda token_ids, table, *others: table.new_empty(len(token_ids), table.shape[1])
)
