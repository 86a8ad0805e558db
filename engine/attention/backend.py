"""The interface of attention backends, and what a model asks of one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.engine.attention.metadata import AttentionMetadata
from pagetwin.engine.step_inputs import StepInputs


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """What one model, on one device, needs from its attention backend."""

    head_size: int
    num_heads: int
    num_kv_heads: int
    dtype: torch.dtype
    block_size: int
    device_type: str = "cpu"
    sliding_windows: tuple[int, ...] = ()
    """Per layer, the positions a token sees, its own included; 0 = all of them."""
    soft_cap: float = 0.0
    """Scores s become soft_cap * tanh(s / soft_cap); 0 = off."""
    needs_alibi: bool = False
    needs_sinks: bool = False


class AttentionBackend(ABC):
    """Computes causal attention over the paged cache.

    Made once per engine, for one spec, used by all of the layers; holds no state of a step.
    """

    name: ClassVar[str]
    is_capturable: ClassVar[bool] = False
    """Whether its launches depend on `plan` and shapes alone, so that CUDA graphs can hold them."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec

    @classmethod
    @abstractmethod
    def rejection(cls, spec: AttentionSpec) -> str | None:
        """Why this backend cannot serve the model (a clause that follows "because"), or None."""

    def plan(
        self, inputs: StepInputs, block_tables: NDArray[np.int32], *, is_graph: bool
    ) -> dict[str, NDArray[Any]]:
        """What the step's attention reads, as int32 or int64 arrays to be sent to the device.

        `block_tables` are the host's, [num_rows, max_blocks], indexed by inputs.rows. For a CUDA
        graph, shapes depend on the number of sequences alone. Nothing, unless overridden.
        """
        return {}

    def work(self, views: Mapping[str, Tensor], *, is_graph: bool) -> dict[str, Any]:
        """Fields of AttentionMetadata made of the arrays of `plan`, which `views` has by name."""
        return {}

    @abstractmethod
    def forward(
        self,
        q: Tensor,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        *,
        scale: float,
        sliding_window: int = 0,
    ) -> Tensor:
        """Attention of the step's queries to what is cached; returns the shape of q.

        q [num_tokens, num_heads, head_size], the heads of a token together, rows of any stride;
        kv_cache [2, num_blocks, block_size, num_kv_heads, head_size], with the step's own keys
        and values in their slots. Query head h reads KV head h // (num_heads // num_kv_heads). A
        token at position p sees the positions in (p - sliding_window, p], or all up to p if
        sliding_window is 0.
        """
