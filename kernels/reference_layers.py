"""What the kernels of a model's layers mean: plain PyTorch, for any device.

Sums and functions are computed in float32, or in float64 where the arguments are: given those, a
function here is exact enough to measure the others by.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, 2019).

    The normalised values are rounded to the dtype before the weight, as in `transformers`
    LlamaRMSNorm.
    """
    y = _widen(x)
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return weight * y.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add x to `residual` in place, rounded to its dtype; the rms_norm of the sum."""
    residual += x
    return rms_norm(residual, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last axis, rounded once."""
    wide = [_widen(tensor) for tensor in (x, weight, bias)]
    return F.layer_norm(wide[0], weight.shape, wide[1], wide[2], eps).to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[..., 2 I] to [..., I]: silu of the first half times the second, rounded once."""
    gate, up = _widen(gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def gelu_and_mul(gate_up: Tensor, approximate: str = "none") -> Tensor:
    """Likewise with gelu, exact or by "tanh"."""
    gate, up = _widen(gate_up).chunk(2, dim=-1)
    return (F.gelu(gate, approximate=approximate) * up).to(gate_up.dtype)
