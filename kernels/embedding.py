"""Gathers the rows of tokens from the embedding table."""

import torch
from torch import Tensor


def embed_tokens(
    token_ids: Tensor,
    table: Tensor,
    token_table: Tensor | None,
    token_rows: Tensor | None,
    positions: Tensor,
) -> Tensor:
    if token_table is not None:
        drawn = token_table[token_rows, positions]
        token_ids = torch.where(token_ids < 0, drawn, token_ids)
    return torch.nn.functional.embedding(token_ids, table)
