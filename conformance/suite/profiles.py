"""Profiles: named sets of properties. Inside a claimed profile nothing may be left out."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from pagetwin.conformance.capability import Flag, Level
from pagetwin.conformance.catalogue.property import Property
from pagetwin.conformance.properties import CATALOGUE
from pagetwin.engine.errors import ConfigError


class Profile(NamedTuple):
    """A set of properties. A claim is a profile whose every property must be judged: there
    `unsupported` is not enough evidence, elsewhere it is an answer."""

    name: str
    what: str
    includes: Callable[[Property], bool]
    is_claim: bool = True
    also_needs: tuple[Flag, ...] = ()
    """What an engine must promise for the claim, beside what its properties need."""

    @property
    def properties(self) -> tuple[Property, ...]:
        """Those of the catalogue, each with all that the claim needs of an engine."""
        included = (row for row in CATALOGUE.values() if self.includes(row))
        if not self.also_needs:
            return tuple(included)
        return tuple(
            msgspec.structs.replace(row, needs=(*row.needs, *self._not_needed_by(row)))
            for row in included
        )

    def _not_needed_by(self, row: Property) -> list[Flag]:
        return [flag for flag in self.also_needs if flag not in row.needs]


_NOT_SERVED = {Flag.POLICY, Flag.OWN_EOS, Flag.MIN_TOKENS, Flag.STREAMING}
"""What not every server's API can say or be asked."""


def _up_to(level: Level) -> Callable[[Property], bool]:
    return lambda row: row.level <= level and not _NOT_SERVED & set(row.needs)


def _paged_core(row: Property) -> bool:
    return row.level <= Level.STEPS and row.level not in (Level.SCORES, Level.CACHE_EVENTS)


_BITS = (
    Flag.CHOSEN_LOGPROB,
    Flag.INVARIANT_RUN,
    Flag.INVARIANT_BATCH,
    Flag.INVARIANT_CHUNK,
    Flag.INVARIANT_CACHE_HISTORY,
    Flag.INVARIANT_PREEMPT,
)
"""Of whoever promises these, answers are compared by the bits of their log-probabilities."""


def _compares_answers(row: Property) -> bool:
    """Whether one context's answers in several circumstances are held against each other."""
    parities = {"cache.hit-miss-parity", "cache.ABA", "cache.concurrent-cold", "cow.fork-parity"}
    return row.id.startswith("iso.") or row.id in parities


def _simulator(row: Property) -> bool:
    steps = row.level in (Level.STEPS, Level.CONTROL)
    return steps and not {Flag.NOT_THE_TWIN, Flag.FAULT_INJECTION} & set(row.needs)


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("default", "all that the engine lets one judge", lambda row: True, is_claim=False),
        Profile("serve-basic", "what any client can judge by tokens", _up_to(Level.TOKENS)),
        Profile("serve-scores", "likewise, and by log-probabilities", _up_to(Level.SCORES)),
        Profile("paged-core", "blocks, sharing, caching and scheduling, step by step", _paged_core),
        Profile(
            "paged-memory",
            "likewise, and what is in the blocks",
            lambda row: _paged_core(row) or row.level == Level.MEMORY,
        ),
        Profile(
            "deterministic",
            "bits that do not depend on circumstances, of an engine that promises it",
            _compares_answers,
            also_needs=_BITS,
        ),
        Profile("simulator", "decisions without values", _simulator),
    )
}


def find_profile(name: str) -> Profile:
    """Raises ConfigError, naming those there are, if there is none of that name."""
    if name not in PROFILES:
        raise ConfigError(f"profile {name!r} is unknown; there are {', '.join(PROFILES)}")
    return PROFILES[name]
