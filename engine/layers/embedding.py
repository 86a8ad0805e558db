"""Decides where a step's first hidden states come from, for tokens known to the host or not."""

import torch.nn.functional as F
from torch import Tensor

from pagetwin.engine.attention.metadata import ForwardContext
from pagetwin.kernels import embedding
from pagetwin.kernels.dispatch import uses_triton


def embed(token_ids: Tensor, positions: Tensor, table: Tensor, context: ForwardContext) -> Tensor:
    """Rows of `table` [vocab_size, hidden_size] for int64 [T]; -1 stands for the token that
    context.token_table has at the token's row and position."""
    if uses_triton(table):
        return embedding.embed_tokens(
            token_ids, table, context.token_table, context.token_rows, positions
        )
    return F.embedding(token_ids, table)
