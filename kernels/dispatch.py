"""Whether a tensor's work goes to our Triton kernels or to plain torch."""

import triton
from torch import Tensor


def uses_triton(x: Tensor) -> bool:
    """On a GPU; and on a CPU where Triton itself is told to interpret (TRITON_INTERPRET=1)."""
    return x.is_cuda or bool(triton.knobs.runtime.interpret)
