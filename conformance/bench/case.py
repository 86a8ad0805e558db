"""One kernel on one shape, as work to be timed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pagetwin.conformance.bench.timing import Launch


class Source:
    """Makes inputs on a device, the same ones each time."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        self.device = device
        self.dtype = dtype
        self._generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Of mean 0, deviation `scale`."""
        drawn = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return drawn.normal_(std=scale, generator=self._generator)

    def permutation(self, size: int) -> Tensor:
        """int64 [size], drawn."""
        return torch.randperm(size, device=self.device, generator=self._generator)


@dataclass(frozen=True, kw_only=True)
class Case:
    """`make` returns a launch on inputs of its own; launches made so do the same work.

    num_bytes: what the work reads and writes at least; flops: what it multiplies and adds.
    """

    kernel: str
    shape: str
    """Without the rows."""
    rows: int
    """Tokens, or whatever else the work grows with."""
    num_bytes: int
    flops: int
    make: Callable[[Source], Launch]
    compared_with: str | None = None
    """The case of reports/baselines/peers.json that is the same work."""
