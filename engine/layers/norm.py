"""Root-mean-square normalisation, alone or together with the residual addition before it."""

from torch import Tensor, nn

from pagetwin.engine.layers.linear import NewParameter
from pagetwin.kernels import reference_layers
from pagetwin.kernels.dispatch import uses_triton
from pagetwin.kernels.norm import rms_norm


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, 2019).

    The statistics are float32 whatever the dtype, and the normalised values are rounded to the
    dtype before the weight, as in `transformers` LlamaRMSNorm.
    """

    def __init__(self, size: int, eps: float, new: NewParameter) -> None:
        super().__init__()
        self.weight = new(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to the same shape and dtype."""
        if uses_triton(x):
            return rms_norm(x.reshape(-1, x.shape[-1]), self.weight, self.eps).view(x.shape)
        return reference_layers.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The sum's normalisation, and the sum, which is the next residual."""
        residual = residual + x
        return self.forward(residual), residual
