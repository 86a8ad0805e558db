"""Rotary position embeddings: how far each pair of channels turns at each position.

The angles are RoFormer's (Su et al., 2021), stretched for long contexts as the checkpoint says:
linear (position interpolation, Chen et al., 2023), llama3 (Llama 3.1), yarn (Peng et al., 2023).
Formulas and their float32 arithmetic follow `transformers.modeling_rope_utils`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pagetwin.engine.errors import ModelError

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """What config.json says of positions."""

    rotary_size: int
    """Channels of a head that turn, the first ones; the others pass unchanged."""
    theta: float
    max_position_embeddings: int
    rope_type: str = "default"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The numbers of the rope type, under their Hugging Face names."""

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise ModelError(
                f"rope_type {self.rope_type!r} in config.json is not supported; supported are "
                f"{', '.join(ROPE_TYPES)}"
            )
        if self.rotary_size < 2 or self.rotary_size % 2:
            raise ModelError(
                f"{self.rotary_size} rotated channels per head is not a positive even number; "
                "check head_dim and partial_rotary_factor in config.json"
            )

    def number(self, name: str) -> float:
        value = self.parameters.get(name)
        if not isinstance(value, int | float):
            raise ModelError(
                f"rope_parameters of type {self.rope_type!r} in config.json have {name}={value!r}; "
                "a number is needed"
            )
        return float(value)

    @property
    def original_max_position(self) -> float:
        """Positions of the training before the stretch."""
        if self.parameters.get("original_max_position_embeddings") is None:
            return float(self.max_position_embeddings)
        return self.number("original_max_position_embeddings")

    @property
    def max_model_len(self) -> int:
        """Positions that the model is meant for.

        Dynamic scaling ends at max_position_embeddings: beyond, `transformers` turns keys by an
        angle that depends on how long their sequence is going to be, which no cache of keys that
        sequences share can follow. Up to there it does not scale.
        """
        if self.rope_type == "linear":
            return int(self.max_position_embeddings * self.number("factor"))
        if self.rope_type == "yarn":
            stretched = int(self.original_max_position * self.number("factor"))
            return max(self.max_position_embeddings, stretched)
        return self.max_position_embeddings


def rope_frequencies(rope: RopeConfig) -> tuple[Tensor, float]:
    """Radians per position, float32 [rotary_size / 2], and the factor on cosine and sine."""
    channels = torch.arange(0, rope.rotary_size, 2, dtype=torch.float32)
    wavelengths = rope.theta ** (channels / rope.rotary_size)
    frequencies = 1.0 / wavelengths
    if rope.rope_type == "linear":
        return frequencies / rope.number("factor"), 1.0
    if rope.rope_type == "llama3":
        return _llama3(rope, frequencies), 1.0
    if rope.rope_type == "yarn":
        return _yarn(rope, wavelengths), _yarn_attention_factor(rope)
    return frequencies, 1.0


def _llama3(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Fast channels stay, slow ones turn `factor` times slower, a ramp in between."""
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    turns = rope.original_max_position / (2 * math.pi / frequencies)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / rope.number("factor") + kept * frequencies


def _yarn(rope: RopeConfig, wavelengths: Tensor) -> Tensor:
    """As llama3, but the ramp is over channel numbers, between two counts of full turns."""

    def channel_that_turns(times: float) -> float:
        period = rope.original_max_position / (times * 2 * math.pi)
        return rope.rotary_size * math.log(period) / (2 * math.log(rope.theta))

    first = channel_that_turns(rope.parameters.get("beta_fast") or 32)
    last = channel_that_turns(rope.parameters.get("beta_slow") or 1)
    if rope.parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.rotary_size - 1)
    width = last - first or 0.001
    pairs = torch.arange(rope.rotary_size // 2, dtype=torch.float32)
    kept = 1 - ((pairs - first) / width).clamp(0, 1)
    return 1.0 / (rope.number("factor") * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def temperature(mscale: float) -> float:
        factor = rope.number("factor")
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    given = rope.parameters.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, mscale_all = rope.parameters.get("mscale"), rope.parameters.get("mscale_all_dim")
    if mscale and mscale_all:
        return temperature(mscale) / temperature(mscale_all)
    return temperature(1.0)


class RotaryEmbedding(nn.Module):
    """Cosine and sine of every position, float32 [max_model_len, rotary_size], made on the host.

    `cos_sin` has each position's cosines, then its sines. It is looked up, not computed at each
    step: vectorised cosines may differ in the last bit with the place of a value in its tensor,
    and a token's key must not depend on its neighbours.
    """

    def __init__(self, rope: RopeConfig, device: torch.device) -> None:
        super().__init__()
        frequencies, factor = rope_frequencies(rope)
        angles = torch.arange(rope.max_model_len, dtype=torch.float32)[:, None] * frequencies
        table = torch.cat((angles.cos() * factor, angles.sin() * factor), dim=-1)
        self.register_buffer("cos_sin", table.to(device), persistent=False)
        self.cos_sin: Tensor
