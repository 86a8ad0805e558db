"""The gated activation of the Llama family's MLP."""

from torch import Tensor

from pagetwin.kernels import activation, reference_layers
from pagetwin.kernels.dispatch import uses_triton


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """[num_tokens, 2 * size] to [num_tokens, size]: silu of the first half times the second.

    Computed in float32 and rounded once.
    """
    if uses_triton(gate_up):
        return activation.silu_and_mul(gate_up)
    return reference_layers.silu_and_mul(gate_up)
