"""Decides how checkpoint matrices are merged, so that each input is multiplied once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagetwin.engine.layers.activation import silu_and_multiply
from pagetwin.kernels import linear
from pagetwin.kernels.dispatch import uses_triton

if TYPE_CHECKING:
    from pagetwin.engine.layers.norm import RMSNorm


@dataclass(frozen=True)
class NewParameter:
    """Makes a model's parameters: uninitialised, frozen, all of one dtype on one device."""

    dtype: torch.dtype
    device: torch.device

    def __call__(self, *shape: int) -> nn.Parameter:
        values = torch.empty(*shape, dtype=self.dtype, device=self.device)
        return nn.Parameter(values, requires_grad=False)

    def matrix(self, num_outputs: int, num_inputs: int) -> nn.Parameter:
        """A weight [num_outputs, num_inputs], in memory as products with few tokens like it.

        On the CPU that is column by column: MKL multiplies 4 to 16 tokens by it in float32 up to
        twice as fast as by rows, and other numbers of tokens or dtypes equally fast.
        """
        if self.device.type == "cpu":
            return nn.Parameter(self(num_inputs, num_outputs).T, requires_grad=False)
        return self(num_outputs, num_inputs)


class Linear(nn.Module):
    """One matrix product for all of the projections that read the same input.

    `parts` maps the name of each projection in the checkpoint to its number of outputs; the
    outputs lie side by side in that order. A plain projection is one part.

    A product comes with what stands around it in a layer, so that a GPU does both at once where
    the rows are few. Sums are float32 and rounded once; on a GPU, a row's bits do not depend on
    the rows beside it.
    """

    def __init__(
        self, num_inputs: int, parts: Mapping[str, int], new: NewParameter, *, bias: bool
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        num_outputs = sum(parts.values())
        self.weight = new.matrix(num_outputs, num_inputs)
        self.bias = new(num_outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, num_inputs] to [num_tokens, sum of the parts]."""
        if uses_triton(x):
            return linear.linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def of_norm(self, x: Tensor, norm: "RMSNorm") -> Tensor:
        """The product with norm(x)."""
        if uses_triton(x):
            return linear.norm_linear(x, norm.weight, norm.eps, self.weight, self.bias)
        return self.forward(norm(x))

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + the product with x; `residual` is the caller's no more."""
        if uses_triton(x):
            return linear.linear_add(x, self.weight, residual, self.bias)
        return residual + self.forward(x)

    def gated_of_norm(self, x: Tensor, norm: "RMSNorm") -> Tensor:
        """Of the product with norm(x), silu of the first half of the outputs times the second."""
        if uses_triton(x) and self.bias is None:
            return linear.norm_gated_linear(x, norm.weight, norm.eps, self.weight)
        return silu_and_multiply(self.of_norm(x, norm))

    def slots(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Checkpoint names under `prefix`, each with the view of a parameter that it fills."""
        first = 0
        for name, size in self.parts.items():
            yield f"{prefix}.{name}.weight", self.weight[first : first + size]
            if self.bias is not None:
                yield f"{prefix}.{name}.bias", self.bias[first : first + size]
            first += size
