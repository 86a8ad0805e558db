"""The gated activation of the Llama family's MLP."""

import torch.nn.functional as F
from torch import Tensor


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """[num_tokens, 2 * size] to [num_tokens, size]: silu of the first half times the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
