"""Decides which tokens a prompt has, when all that counts is what it shares with others.

A prompt is a row of segments. Two segments of one name start with the same tokens; two of
different names differ in their first token, after which nothing is a common prefix. Token ids
thus stand for content, and lie above every vocabulary; no model could read them.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import cache
from itertools import chain
from typing import NamedTuple

import msgspec
import numpy as np

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.workloads.draws import one_by_one

SEGMENT_TOKENS = 2**24
"""Longest segment."""
REST = 2**31
"""The second token of a segment, above all that a simulated step samples; the third is one more."""
FIRST = 2**32
"""The lowest first token."""


class Kind(IntEnum):
    """Whose content a segment is."""

    OWN = 0
    """Of one request or turn."""
    SYSTEM = 1
    """A system prompt, shared by a family of requests."""
    HASHED = 2
    """What a trace names by a hash."""


class Segment(NamedTuple):
    kind: Kind
    name: int
    """0 to 2**60."""
    num_tokens: int


def tokens_of(segments: Iterable[Segment]) -> tuple[int, ...]:
    """The tokens of a prompt; segments have 1 to `SEGMENT_TOKENS` tokens."""
    return tuple(chain.from_iterable(map(_tokens, segments)))


def _tokens(segment: Segment) -> tuple[int, ...]:
    first = FIRST + segment.name * 3 + segment.kind
    # What follows the first token is one tuple for all, so that a million prompts are cheap.
    return (first, *_rest(1 << segment.num_tokens.bit_length())[: segment.num_tokens - 1])


@cache
def _rest(num_tokens: int) -> tuple[int, ...]:
    return tuple(range(REST, REST + num_tokens))


class SystemPrompts(msgspec.Struct, frozen=True, kw_only=True):
    """System prompts at the start of all requests: each family of requests has one of its own."""

    num_tokens: int
    num_families: int = 1
    skew: float = 0.0
    """Exponent of Zipf's law: family k has weight 1 / (k + 1) ** skew; 0: all are alike."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_tokens <= SEGMENT_TOKENS:
            raise ConfigError(
                f"system={self.num_tokens} tokens is outside 1..{SEGMENT_TOKENS}; leave it away "
                "for no system prompt"
            )
        if not 1 <= self.num_families <= 10**6:
            raise ConfigError(f"families={self.num_families} is outside 1..1000000")
        if not 0 <= self.skew <= 10:
            raise ConfigError(f"skew={self.skew!r} is outside 0..10; 0 makes families alike")

    def draws(self, random: np.random.Generator) -> Iterator[Segment]:
        """Endless system prompts."""
        weights = (1 + np.arange(self.num_families)) ** -self.skew
        shares = np.cumsum(weights) / weights.sum()
        for u in one_by_one(random.random):
            family = min(int(np.searchsorted(shares, u, side="right")), self.num_families - 1)
            yield Segment(Kind.SYSTEM, family, self.num_tokens)
