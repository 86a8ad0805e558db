"""What the engine must know of a model, and what it may call on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from pagetwin.engine.attention.metadata import ForwardContext


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model's sizes, as cache, attention backend, scheduler and sampler need them."""

    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    max_model_len: int
    """Longest sequence in tokens, prompt and output together."""
    sliding_windows: tuple[int, ...]
    """Per layer, the positions a token sees, its own included; 0 = all of them."""
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype


class Model(Protocol):
    """A causal language model over the paged cache. `spec` is fixed at construction."""

    spec: ModelSpec

    @classmethod
    def from_hf_config(
        cls, config: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """Make the model, weights uninitialised, from the content of a config.json."""

    def checkpoint_slots(self) -> dict[str, Tensor]:
        """For each tensor of a checkpoint, by name, the (view of a) parameter that it fills."""

    def tied_names(self) -> dict[str, str]:
        """Names that a checkpoint may use for a slot too, each with the slot's own name."""

    def forward(self, input_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """int64 [num_tokens] twice, to hidden states [num_rows, hidden_size].

        The rows are context.sampled_rows, or all tokens if that is None. On a GPU, a token id may
        be -1: it stands in context.token_table (see engine/layers/embedding.py).
        """

    def compute_logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Hidden states [num_rows, hidden_size] to float32 logits [num_rows, vocab_size].

        `out` takes the logits where it is given, and is returned.
        """
