"""Products with a model's weights, and what stands around them in a layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from pagetwin.kernels.activation import silu_and_mul
from pagetwin.kernels.norm import rms_norm


@contextmanager
def no_split_k() -> Iterator[None]:
    yield


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    if out is None:
        return F.linear(x, weight, bias)
    if x.dtype == out.dtype:
        return torch.mm(x, weight.T, out=out)
    return out.copy_(
        torch.mm(x, weight.T, out_dtype=torch.float32)
        if x.is_cuda
        else x.float() @ weight.T.float()
    )


def norm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    return F.linear(rms_norm(x, norm_weight, eps), weight, bias)


def linear_add(x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    if bias is not None:
        residual += bias
    return residual.addmm_(x, weight.T)


def norm_gated_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor) -> Tensor:
    return silu_and_mul(F.linear(rms_norm(x, norm_weight, eps), weight))
