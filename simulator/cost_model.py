"""Decides how long a step takes in virtual time, from what the step is made of."""

import math
from typing import Protocol

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.step import StepPlan


class StepComposition(msgspec.Struct, frozen=True, kw_only=True):
    """The quantities of a step that cost time."""

    num_prefill_tokens: int
    """Tokens of the sequences that get more than one."""
    num_decode_sequences: int
    """Sequences that get a single token."""
    num_context_tokens: int
    """Sum over the sequences of the tokens that their last query sees."""


def composition(plan: StepPlan) -> StepComposition:
    """What a plan is made of."""
    shares = [row.num_scheduled_tokens for row in plan.scheduled]
    return StepComposition(
        num_prefill_tokens=sum(n for n in shares if n > 1),
        num_decode_sequences=shares.count(1),
        num_context_tokens=sum(
            row.num_computed_tokens + row.num_scheduled_tokens for row in plan.scheduled
        ),
    )


class CostModel(Protocol):
    """Seconds for a step; the same plan always costs the same."""

    def seconds(self, plan: StepPlan) -> float: ...


class LinearCostModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds as a constant plus a price for each part of the composition.

    Coefficients are seconds, finite and not negative; ConfigError otherwise.
    """

    constant_s: float
    per_prefill_token_s: float = 0.0
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

    def seconds(self, plan: StepPlan) -> float:
        parts = composition(plan)
        return (
            self.constant_s
            + self.per_prefill_token_s * parts.num_prefill_tokens
            + self.per_decode_sequence_s * parts.num_decode_sequences
            + self.per_context_token_s * parts.num_context_tokens
        )
