"""What products with weights mean: plain PyTorch, for any device, and how exact kernels must be.

Given float64, a function here is exact enough to measure the others by.
"""

import torch
from torch import Tensor

from pagetwin.kernels.reference_layers import rms_norm, silu_and_mul


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias for x [M, K], weight [N, K], bias [N]."""
    y = x @ weight.T
    return y if bias is None else y + bias


def norm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    return linear(rms_norm(x, norm_weight, eps), weight, bias)


def linear_add(x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """Add linear(x) to `residual` in place."""
    return residual.add_(linear(x, weight, bias))


def norm_gated_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    return silu_and_mul(norm_linear(x, norm_weight, eps, weight, bias))


def linear_error_bound(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Largest |computed - exact| of linear, computed in float32 and rounded to dtype; doubled.

    Products are exact or rounded once, sums truncated, as tensor cores do, hence eps and not half
    of it (Higham 2002, 3.1; Fasi et al. 2021).
    """
    size = x.shape[1]
    magnitude = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        magnitude += bias.double().abs()
    roundoff = (size + 2) * torch.finfo(torch.float32).eps
    return 2 * (roundoff + torch.finfo(dtype).eps / 2) * magnitude
