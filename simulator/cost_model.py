"""Decides how long a step takes in virtual time, from what the step is made of.

A device computes a step, and a host plans it, launches it and closes it. What the two do at the
same time is the business of whoever runs the steps (`step_clock`).
"""

import math
from functools import cached_property
from typing import NamedTuple, Protocol

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
    num_prefix_tokens: int = 0
    """Sum over the prefilling sequences of the tokens before the chunk: computed earlier, or found
    in the prefix cache."""
    num_decode_sequences: int = 0
    num_context_tokens: int = 0
    """Sum over the decoding sequences of the tokens that each sees, its own included."""
    num_repeated_tokens: int = 0
    """Of those tokens, the ones that a decoding sequence before sees, too, in a block that both
    hold: keys and values that are read from memory once."""
    num_samples: int = 0
    """Sequences that reach their last token, so that a token is sampled; a group that forks in
    the step counts once."""


def composition(plan: StepPlan, num_repeated_tokens: int = 0) -> StepComposition:
    """What a plan is made of.

    `num_repeated_tokens` are those in blocks that several of the running sequences hold, each
    block counted once less than its holders. Where some of them prefill, the decoding ones have
    their share of it.
    """
    chunks = tokens = area = prefix = decodes = context = samples = 0
    for row in plan.scheduled:
        computed, count = row.num_computed_tokens, row.num_scheduled_tokens
        if count == 1:
            decodes += 1
            context += computed + 1
        else:
            chunks += 1
            tokens += count
            prefix += computed
            area += count * computed + count * (count + 1) // 2
        if row.samples:
            samples += 1
    if num_repeated_tokens > 0:
        repeated = num_repeated_tokens * decodes // max(decodes + chunks, 1)
        num_repeated_tokens = min(repeated, context)
    return StepComposition(
        num_prefill_sequences=chunks,
        num_prefill_tokens=tokens,
        prefill_area=area,
        num_prefix_tokens=prefix,
        num_decode_sequences=decodes,
        num_context_tokens=context,
        num_repeated_tokens=num_repeated_tokens,
        num_samples=samples,
    )


class DecodeLine(NamedTuple):
    """What steps that only decode cost: `base + slope * context`, in ticks, up to a context."""

    base: int
    slope: int
    last_context: int | None = None
    """The largest sum of tokens seen for which it holds; None: it always does."""


class HostTicks(NamedTuple):
    """What a host does for a step, in ticks."""

    before: int = 0
    """Until the first kernel is launched: planning, preparing inputs."""
    launch: int = 0
    """Until the last one is, while the device computes already."""
    after: int = 0
    """From the end on the device to where the tokens are handed out."""


NO_HOST = HostTicks()


class CostModel(Protocol):
    """Ticks for a step; the same composition always costs the same."""

    def ticks(self, parts: StepComposition) -> int:
        """What the device computes for, at least 1."""
        ...

    def host_ticks(self, parts: StepComposition) -> HostTicks:
        """What the host does; of a step that only decodes, where each sequence samples, it
        depends on nothing but their number."""
        ...

    def decode_line(self, num_sequences: int, context: int, num_repeated: int = 0) -> DecodeLine:
        """The line on which steps lie that only decode.

        Such a step of `num_sequences` sequences that see C tokens in all, `num_repeated` of them
        repeated, and each of which samples, costs exactly base + slope * C: what `ticks` says of
        it, from C = `context` up to the line's end. That is at least 1, and slope >= 0.
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

    def host_ticks(self, parts: StepComposition) -> HostTicks:
        return NO_HOST

    def decode_line(self, num_sequences: int, context: int, num_repeated: int = 0) -> DecodeLine:
        constant, _, _, sequence, per_context = self._prices
        return DecodeLine(constant + sequence * num_sequences, per_context)


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
