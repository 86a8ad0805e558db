"""Root-mean-square normalisation (Zhang and Sennrich, 2019)."""

from torch import Tensor, nn

from pagetwin.engine.layers.linear import NewParameter
from pagetwin.kernels import norm, reference_layers
from pagetwin.kernels.dispatch import uses_triton


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    The statistics are float32 whatever the dtype, and the normalised values are rounded to the
    dtype before the weight, as in `transformers` LlamaRMSNorm.
    """

    def __init__(self, size: int, eps: float, new: NewParameter) -> None:
        super().__init__()
        self.weight = new(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, size] to the same shape and dtype."""
        if uses_triton(x):
            return norm.rms_norm(x, self.weight, self.eps)
        return reference_layers.rms_norm(x, self.weight, self.eps)
