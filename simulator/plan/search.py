"""The cheapest candidate that meets its objective: fewest replicas of each design, then knobs.

For each GPU and spread the fewest replicas are found by doubling and bisection, which takes for
granted that more replicas are never worse. The cheapest designs then have their knobs changed, one
at a time, and a change is kept that needs fewer replicas. That finds a good configuration, not for
certain the best: what was tried is told.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.cluster.deployment import Deployment
from pagetwin.simulator.plan.candidates import Candidate, Choices
from pagetwin.simulator.plan.trial import Trial

RIVAL_PRICE = 1.5
"""Other kinds of GPU are looked at up to this many times the cheapest price so far, to tell at what
price they would win."""
NUM_REFINED = 2
"""Designs whose knobs are tried, the cheapest ones."""
LOAD_STEPS = 5
"""Halvings of the interval in which the load lies that a candidate just bears."""
MOST_LOAD = 8.0


class Runner(Protocol):
    """Tries candidates, several at a time if it can."""

    def run(self, tasks: Sequence[tuple[Candidate, float]]) -> list[Trial]:
        """One trial for each (candidate, load factor), in their order."""
        ...


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, and what it rests on."""

    winner: Trial | None
    by_design: tuple[Trial, ...]
    """The cheapest trial that meets the objective of every design that has one, cheapest first."""
    trials: tuple[Trial, ...]
    """All, in the order of trying."""
    load_met: float | None = None
    """The largest tried multiple of the load at which the winner still meets the objective."""
    load_missed: float | None = None
    """The smallest at which it does not; None if it bore all that was tried."""
    load_saturated: float | None = None
    """The smallest tried at which its queue grows."""


class Search:
    """One search; `max_gpus` bounds every candidate.

    What is not chosen is as in `base`; `prices` are US dollars per GPU-hour by GPU. `tell` hears of
    each trial.
    """

    def __init__(
        self,
        choices: Choices,
        runner: Runner,
        *,
        base: Deployment,
        max_gpus: int,
        prices: dict[str, float] | None = None,
        tell: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        if max_gpus < 1:
            raise ConfigError(f"max_gpus={max_gpus} is below 1; nothing could be bought")
        self._choices = choices
        self._firsts = list(choices.hardware(base, prices or {}))
        self._runner = runner
        self._max_gpus = max_gpus
        self._tell = tell
        self._known: dict[tuple[Candidate, float], Trial] = {}

    def run(self) -> Plan:
        """Raises ConfigError if no GPU has room for the model."""
        firsts = self._try_all([one for one in self._firsts if one.num_gpus <= self._max_gpus])
        possible = [first for first in firsts if first.outcome != "impossible"]
        if not possible:
            reason = firsts[0].why if firsts else "each needs more than max_gpus"
            raise ConfigError(f"nothing to choose from can run the model: {reason}")
        best: dict[Candidate, Trial] = {}
        for first in sorted(possible, key=lambda trial: trial.price_per_h):
            cheapest = min((trial.price_per_h for trial in best.values()), default=float("inf"))
            found = self._fewest(first.candidate, RIVAL_PRICE * cheapest)
            if found is not None:
                best[first.candidate] = found
        if not best:
            for first in possible:
                rescued = self._rescued(first.candidate)
                if rescued is not None:
                    best[first.candidate] = rescued
        cheapest_first = sorted(best, key=lambda candidate: _rank(best[candidate]))
        for candidate in cheapest_first[:NUM_REFINED]:
            best[candidate] = self._refined(best[candidate])
        ranked = sorted(best.values(), key=_rank)
        winner = ranked[0] if ranked else None
        loads = self._loads(winner.candidate) if winner is not None else (None, None, None)
        return Plan(
            winner=winner,
            by_design=tuple(ranked),
            trials=tuple(self._known.values()),
            load_met=loads[0],
            load_missed=loads[1],
            load_saturated=loads[2],
        )

    def _fewest(self, candidate: Candidate, budget: float) -> Trial | None:
        """The trial with the fewest replicas of that kind that meets the objective, if it costs no
        more than `budget` an hour and no more GPUs than allowed; None if there is none."""
        most = self._most(candidate)
        if budget < float("inf"):
            most = min(most, int(budget / candidate.times(1).price_per_h + 1e-9))
        few, many = 0, 1
        while many <= most:
            found = self._try(candidate.times(many))
            if found.meets:
                return self._between(few, found)
            few, many = many, min(2 * many, most) if many < most else most + 1
        return None

    def _between(self, few: int, found: Trial) -> Trial:
        """Bisection: `few` replicas (0: none) do not do, those of `found` do."""
        while found.candidate.num_replicas - few > 1:
            middle = (few + found.candidate.num_replicas) // 2
            trial = self._try(found.candidate.times(middle))
            if trial.meets:
                found = trial
            else:
                few = middle
        return found

    def _refined(self, trial: Trial) -> Trial:
        """The trial, or a cheaper one whose knobs differ.

        Each change of one knob is tried with a replica less; the cheapest that meets the objective
        is where the next round starts, until none does.
        """
        while (count := trial.candidate.num_replicas - 1) > 0:
            better = self._changed(trial.candidate.times(count))
            if better is None:
                break
            trial = better
        return trial

    def _rescued(self, candidate: Candidate) -> Trial | None:
        """Whether with all the GPUs there are a change of one knob meets the objective; then the
        fewest replicas of it."""
        return self._changed(candidate.times(self._most(candidate)))

    def _changed(self, candidate: Candidate) -> Trial | None:
        tried = self._try_all(list(self._choices.changes(candidate)))
        found = [self._fewest(t.candidate, t.price_per_h) or t for t in tried if t.meets]
        return min(found, key=_rank) if found else None

    def _most(self, candidate: Candidate) -> int:
        return self._max_gpus // candidate.gpus_per_replica

    def _loads(self, candidate: Candidate) -> tuple[float | None, float | None, float | None]:
        """(largest load met, smallest missed, smallest at which the queue grows)."""
        met, missed, saturated = 1.0, None, None
        factors = _doublings()
        for factor in factors:
            trial = self._try(candidate, factor)
            if trial.outcome == "saturated":
                saturated = factor
            if not trial.meets:
                missed = factor
                break
            met = factor
        for _ in range(LOAD_STEPS if missed is not None else 0):
            assert missed is not None
            middle = (met + missed) / 2
            trial = self._try(candidate, middle)
            if trial.outcome == "saturated":
                saturated = middle
            met, missed = (middle, missed) if trial.meets else (met, middle)
        if saturated is None and missed is not None:
            saturated = self._first_saturated(candidate, missed)
        return met, missed, saturated

    def _first_saturated(self, candidate: Candidate, missed: float) -> float | None:
        for factor in (1.1, 1.25, 1.5, 2.0, 3.0):
            if self._try(candidate, missed * factor).outcome == "saturated":
                return missed * factor
        return None

    def _try(self, candidate: Candidate, factor: float = 1.0) -> Trial:
        return self._try_all([candidate], factor)[0]

    def _try_all(self, candidates: Sequence[Candidate], factor: float = 1.0) -> list[Trial]:
        keys = [(candidate, factor) for candidate in candidates]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        for key, trial in zip(new, self._runner.run(new), strict=True):
            self._known[key] = trial
            self._tell(trial)
        return [self._known[key] for key in keys]


def _rank(trial: Trial) -> tuple[float, float, str]:
    """Cheaper first; then what is more often in time, then the name, so that ties are settled."""
    return trial.price_per_h, -(trial.goodput_share or 0.0), str(trial.candidate)


def _doublings() -> Iterator[float]:
    factor = 1.25
    while factor <= MOST_LOAD:
        yield factor
        factor *= 1.6
