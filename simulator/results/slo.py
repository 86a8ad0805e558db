"""Decides what a service level objective means: `ttft_p95<500ms,tpot_p95<50ms`.

A term is a metric, a percentile and a limit. It is met if that percentile, over the requests that
finished, is below the limit; a term without a percentile is of every request. Goodput counts the
requests that are below all limits, each by itself; one that was not served is not.
"""

import re

import msgspec
import numpy as np

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.cluster.journeys import Outcome
from pagetwin.simulator.results.result import Result

METRICS = ("ttft", "tpot", "e2e", "queue")
UNITS = {"ms": 1e-3, "s": 1.0}
_TERM = re.compile(r"([a-z0-9]+)(?:_p(\d+(?:\.\d+)?))?<=?([0-9.]+)(ms|s)")


class SloTerm(msgspec.Struct, frozen=True, kw_only=True):
    metric: str
    percentile: float
    """100: every request."""
    limit_s: float

    @property
    def name(self) -> str:
        at = "" if self.percentile == 100 else f"_p{self.percentile:g}"
        limit = f"{self.limit_s:g}s" if self.limit_s >= 1 else f"{self.limit_s * 1e3:g}ms"
        return f"{self.metric}{at}<{limit}"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a run says of one term. `value_s` is None if no request has the metric."""

    term: SloTerm
    value_s: float | None
    met: bool


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    terms: tuple[SloTerm, ...]

    def verdicts(self, result: Result) -> tuple[Verdict, ...]:
        """For each term. With requests that were not served, no term of all of them is met."""
        return tuple(self._verdict(term, result) for term in self.terms)

    def num_good(self, result: Result) -> int:
        """Requests that finished within every limit."""
        good = result.requests["outcome"] == Outcome.FINISHED
        for term in self.terms:
            values = result.requests[f"{term.metric}_s"]
            # An answer of one token has no time between tokens, and is not late by it.
            good &= (values < term.limit_s) | np.isnan(values)
        return int(good.sum())

    def _verdict(self, term: SloTerm, result: Result) -> Verdict:
        values = result.served(f"{term.metric}_s")
        if not len(values):
            return Verdict(term=term, value_s=None, met=False)
        value = float(np.percentile(values, term.percentile))
        return Verdict(term=term, value_s=value, met=value < term.limit_s)


def parse_slo(text: str) -> Slo:
    """Raises ConfigError, naming the term."""
    terms = []
    for part in text.split(","):
        found = _TERM.fullmatch(part.replace(" ", ""))
        if found is None or found[1] not in METRICS:
            raise ConfigError(
                f"slo {text!r}: {part!r} is no term; write METRIC_pNN<LIMIT, as in "
                f"ttft_p95<500ms, with one of {', '.join(METRICS)} and ms or s"
            )
        percentile = float(found[2] or 100)
        try:
            limit_s = float(found[3]) * UNITS[found[4]]
        except ValueError:
            raise ConfigError(f"slo {text!r}: {found[3]!r} is not a number") from None
        if not 0 < percentile <= 100 or limit_s <= 0:
            raise ConfigError(
                f"slo {text!r}: {part!r} needs a percentile in 0..100 and a limit above 0"
            )
        terms.append(SloTerm(metric=found[1], percentile=percentile, limit_s=limit_s))
    return Slo(terms=tuple(terms))
