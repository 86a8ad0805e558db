"""What the tests of attention backends share."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor

from pagetwin.conformance.numerics import attention
from pagetwin.engine.attention.torch_backend import TorchBackend
from pagetwin.kernels.trial import Span


@pytest.fixture
def forward() -> Callable[..., Tensor]:
    """forward(backend, batch, *, scale, sliding_window): the backend's output for a PagedBatch."""
    return attention.forward


@pytest.fixture
def attend() -> Callable[..., Tensor]:
    """attend(spans, *, block_size=16, ...): TorchBackend's output for the spans, laid out anew."""

    def run(spans: Sequence[Span], **options: Any) -> Tensor:
        return attention.attend(TorchBackend, spans, **options)

    return run
