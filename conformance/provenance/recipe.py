"""What a provenance checkpoint is made from: one small frozen value that stands in its config."""

import json
from pathlib import Path
from typing import Literal

import msgspec

from pagetwin.engine.errors import ConfigError

CONFIG_KEY = "pagetwin_provenance"
"""Under this key the recipe stands in the checkpoint's config.json."""

NUM_DIGITS = 4
DIGIT_BITS = 16
CODE_BITS = NUM_DIGITS * DIGIT_BITS
"""A token's code: four digits, each one of 16 orthogonal words of 16 signs."""

NUM_SPECIAL_TOKENS = 4
"""Ids 0 (padding), 1 (begin), 2 (end) and 3 (unknown) never stand in a prompt."""
END_TOKEN_ID = 2

MAX_LAYERS = 2


class ProvenanceRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decides every weight. The greedy token at position t is the token in slot t - offset.

    Raises ConfigError on values that no checkpoint can be made from.
    """

    offset: int = 5
    """Distance in tokens from the reading position to the slot that it reads (K)."""
    vocab_size: int = 4096
    num_heads: int = 1
    """1, 2 or 4: each query head brings its share of the four digits."""
    num_kv_heads: int = 1
    num_layers: int = 1
    """With 2, the second layer reads, offset // 2 slots back, what the first one read there."""
    sliding_window: int = 0
    """Tokens that a layer looks back, itself included (a Mistral checkpoint); 0 = off."""
    max_model_len: int = 2048
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    seed: int = 0
    """Shuffles which token has which code."""

    def __post_init__(self) -> None:
        _require(1 <= self.num_layers <= MAX_LAYERS, "num_layers", self.num_layers, "is not 1 or 2")
        _require(self.num_heads in (1, 2, 4), "num_heads", self.num_heads, "is not 1, 2 or 4")
        _require(
            self.num_kv_heads >= 1 and self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"does not divide num_heads={self.num_heads}",
        )
        words = DIGIT_BITS**NUM_DIGITS
        _require(
            NUM_SPECIAL_TOKENS < self.vocab_size <= words,
            "vocab_size",
            self.vocab_size,
            f"is outside {NUM_SPECIAL_TOKENS + 1}..{words}",
        )
        _require(
            self.num_layers <= self.offset < self.max_model_len,
            "offset",
            self.offset,
            f"is outside {self.num_layers}..{self.max_model_len - 1}",
        )
        window = self.sliding_window
        _require(
            window == 0 or window > max(self.layer_offsets),
            "sliding_window",
            window,
            f"hides the slot that a layer is to read, {max(self.layer_offsets)} tokens back",
        )

    @property
    def layer_offsets(self) -> tuple[int, ...]:
        """How far back each layer reads, in tokens; they add up to `offset`."""
        if self.num_layers == 1:
            return (self.offset,)
        return (self.offset - self.offset // 2, self.offset // 2)

    @property
    def min_prompt_tokens(self) -> int:
        """Shorter prompts have no slot for the first token to read."""
        return self.offset + 1


def _require(ok: bool, field: str, value: object, limit: str) -> None:
    if not ok:
        raise ConfigError(f"provenance checkpoint: {field}={value!r} {limit}")


def read_recipe(folder: Path) -> ProvenanceRecipe | None:
    """The recipe of a checkpoint folder; None if it is not a provenance checkpoint.

    Raises ConfigError if the folder's config.json cannot be read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a model's config ({error})") from None
    if not isinstance(config, dict) or CONFIG_KEY not in config:
        return None
    try:
        return msgspec.convert(config[CONFIG_KEY], ProvenanceRecipe)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {CONFIG_KEY} is not a recipe ({error})") from None
