"""Decides how long a step takes in virtual time, from what the step is made of."""

import math
from functools import cached_property
from typing import Protocol

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.step import StepPlan
from pagetwin.simulator.clock import to_ticks


class StepComposition(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The quantities of a step that cost time.

    A sequence that gets one token decodes, one that gets more prefills: the device does not see
    a prompt's last single token as anything else.
    """

    num_prefill_sequences: int = 0
    num_prefill_tokens: int = 0
    prefill_area: int = 0
    """Query-key pairs of causal attention over the prefilling sequences: n tokens that follow c
    computed ones see n * c + n * (n + 1) / 2."""
    num_decode_sequences: int = 0
    num_context_tokens: int = 0
    """Sum over the decoding sequences of the tokens that each sees, its own included."""
    num_samples: int = 0
    """Sequences that reach their last token, so that a token is sampled; a group that forks in
    the step counts once."""


def composition(plan: StepPlan) -> StepComposition:
    """What a plan is made of."""
    chunks = tokens = area = decodes = context = samples = 0
    for row in plan.scheduled:
        computed, count = row.num_computed_tokens, row.num_scheduled_tokens
        if count == 1:
            decodes += 1
            context += computed + 1
        else:
            chunks += 1
            tokens += count
            area += count * computed + count * (count + 1) // 2
        samples += row.samples
    return StepComposition(
        num_prefill_sequences=chunks,
        num_prefill_tokens=tokens,
        prefill_area=area,
        num_decode_sequences=decodes,
        num_context_tokens=context,
        num_samples=samples,
    )


class CostModel(Protocol):
    """Ticks for a step; the same composition always costs the same."""

    def ticks(self, parts: StepComposition) -> int:
        """Duration of a step, at least 1."""
        ...

    def decode_line(self, num_sequences: int) -> tuple[int, int]:
        """(base, slope) in ticks, of steps that only decode.

        Such a step of `num_sequences` sequences that see C tokens in all, and each of which
        samples, costs exactly base + slope * C: what `ticks` says of it. base + slope >= 1,
        slope >= 0.
        """
        ...


class LinearCostModel(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True
):
    """A constant plus a price for each part of the composition.

    Coefficients are seconds, finite and not negative, the constant at least a tick; ConfigError
    otherwise. Each is rounded to whole ticks.
    """

    constant_s: float
    per_prefill_token_s: float = 0.0
    per_prefill_pair_s: float = 0.0
    """For each query-key pair of `StepComposition.prefill_area`."""
    per_decode_sequence_s: float = 0.0
    per_context_token_s: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"cost_model.{name}={value!r} is not a number of seconds from 0 upwards; "
                    "fit it again or set it to 0"
                )
        if to_ticks(self.constant_s) < 1:
            raise ConfigError(
                f"cost_model.constant_s={self.constant_s!r} is below a picosecond; a step takes "
                "time, or virtual time would stand still"
            )

    @cached_property
    def _prices(self) -> tuple[int, int, int, int, int]:
        """The coefficients in ticks, in the order of the fields."""
        return (
            to_ticks(self.constant_s),
            to_ticks(self.per_prefill_token_s),
            to_ticks(self.per_prefill_pair_s),
            to_ticks(self.per_decode_sequence_s),
            to_ticks(self.per_context_token_s),
        )

    def ticks(self, parts: StepComposition) -> int:
        constant, token, pair, sequence, context = self._prices
        return (
            constant
            + token * parts.num_prefill_tokens
            + pair * parts.prefill_area
            + sequence * parts.num_decode_sequences
            + context * parts.num_context_tokens
        )

    def decode_line(self, num_sequences: int) -> tuple[int, int]:
        constant, _, _, sequence, context = self._prices
        return constant + sequence * num_sequences, context


REFERENCE_COSTS = LinearCostModel(
    constant_s=7.6e-3,
    per_prefill_token_s=27e-6,
    per_prefill_pair_s=1e-9,
    per_decode_sequence_s=4e-6,
    per_context_token_s=44e-9,
)
"""About an 8-billion-parameter model in bf16 on one H100, by arithmetic: 15 GB of weights read at
2 TB/s, 2 FLOP per parameter and token at 600 TFLOP/s, 131 kB of K/V per token read at 3 TB/s.
For benchmarks and examples; nobody measured it."""
