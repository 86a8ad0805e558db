"""The kill run: every mutant against the suite's trials, until something notices or time is up.

A mutant counts as killed in a seed by the first example that breaks any property. The seed then
goes on for a while until the property that the mutant names has failed as well: a crash elsewhere
is a kill, but a lesser one.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import msgspec

from pagetwin.conformance.mutants.mutant import Mutant
from pagetwin.conformance.properties import CATALOGUE, Violation
from pagetwin.conformance.trials.registry import Trial, trials_of

SCHEMA = "pagetwin.mutants/1"
EQUIVALENT_EXAMPLES = 25
"""What a mutant that is said to be equivalent is tried with in each seed."""
NAMED_WITHIN = 10
"""Examples after the kill within which the property that the mutant names must fail, too."""
NEEDED_RATE = 0.95
"""Share of the seeds in which a mutant must be killed to count as killed: 19 of 20."""


class SeedKill(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one seed showed of one mutant."""

    seed: int
    killed: bool
    killed_by: str = ""
    """The property of the lowest level among those that the first killing example breaks."""
    level: str = ""
    trial: str = ""
    named: bool = False
    """Whether the property that the mutant names failed in that example or soon after."""
    examples: int = 0
    """Up to the kill, that one included; all that were run, if there was none."""
    named_examples: int = 0
    seconds: float = 0.0
    witness: str = ""


class MutantKills(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the kill matrix."""

    id: str
    bug: str
    statement: str
    expects: str
    killed: bool
    """In at least 19 of 20 seeds."""
    killed_by: str
    """Of the properties at the lowest level, the one that killed it in most seeds."""
    level: str
    """The lowest level at which a property killed it in some seed."""
    equivalent: str
    examples: tuple[float, float] | None
    """Median and 90th percentile of examples to the kill, over the seeds that killed it."""
    seconds: tuple[float, float] | None
    seeds_killed: int
    seeds_named: int
    seeds: tuple[SeedKill, ...]


class KillMatrix(msgspec.Struct, frozen=True, kw_only=True):
    """What `pagetwin verify mutants --json` prints."""

    schema: str = SCHEMA
    seeds: int
    budget_s: float
    mutants: tuple[MutantKills, ...]
    not_measured: tuple[str, ...] = ()
    """Mutants of the catalogue that this run left out."""
    control: tuple[SeedKill, ...] = ()
    """The clean engine under the same trials: nothing may be killed here."""

    @property
    def survivors(self) -> list[MutantKills]:
        return [one for one in self.mutants if not one.killed and not one.equivalent]

    @property
    def false_alarms(self) -> list[SeedKill]:
        return [one for one in self.control if one.killed]


def run_kills(
    mutants: Sequence[Mutant],
    *,
    num_seeds: int,
    budget_s: float,
    control_examples: int,
    on_row: Callable[[MutantKills], None] = lambda row: None,
    clock: Callable[[], float] = time.process_time,
) -> KillMatrix:
    """Tries every mutant in seeds 0..num_seeds-1, `budget_s` seconds each at most, and the clean
    engine for `control_examples` examples of each seed. Seconds are the processor's.

    Equivalent mutants are tried as well: one that is killed shows that the argument is wrong.
    Raises EditError, at once, if a mutant no longer fits the code.
    """
    for mutant in mutants:
        with mutant.planted():
            pass  # an edit that no longer fits is told now, not in an hour
    control = tuple(_control(seed, mutants, control_examples, clock) for seed in range(num_seeds))
    rows = []
    for mutant in mutants:
        trials = trials_of(mutant.modules, mutant.also_tried)
        with mutant.planted():
            seeds = [_try(seed, trials, mutant, budget_s, clock) for seed in range(num_seeds)]
        rows.append(_row(mutant, seeds))
        on_row(rows[-1])
    return KillMatrix(seeds=num_seeds, budget_s=budget_s, mutants=tuple(rows), control=control)


def _try(
    seed: int, trials: Sequence[Trial], mutant: Mutant, budget_s: float, clock: Callable[[], float]
) -> SeedKill:
    start = clock()
    first: SeedKill | None = None
    number = 0
    for number, trial, index in _examples(trials):
        found = trial.run(seed, index)
        elapsed = clock() - start
        if found and first is None:
            first = _killed(seed, trial, number, elapsed, found)
        if first is not None and any(one.property_id == mutant.expects for one in found):
            return msgspec.structs.replace(first, named=True, named_examples=number)
        late = first is not None and number >= first.examples + NAMED_WITHIN
        enough = bool(mutant.equivalent) and number >= EQUIVALENT_EXAMPLES
        if elapsed > budget_s or late or enough:
            break
    return first or SeedKill(seed=seed, killed=False, examples=number, seconds=clock() - start)


def _examples(trials: Sequence[Trial]) -> Iterator[tuple[int, Trial, int]]:
    """One example of each trial in turn, counted from 1 over all of them."""
    number, index = 0, 0
    while True:
        for trial in trials:
            number += 1
            yield number, trial, index
        index += 1


def _control(
    seed: int, mutants: Sequence[Mutant], num_examples: int, clock: Callable[[], float]
) -> SeedKill:
    """The clean engine: the same streams, and nothing to be found."""
    start = clock()
    modules = tuple(module for mutant in mutants for module in mutant.modules)
    named = tuple(name for mutant in mutants for name in mutant.also_tried)
    trials = trials_of(modules, named)
    number = 0
    for number, trial, index in _examples(trials):
        found = trial.run(seed, index)
        if found:
            return _killed(seed, trial, number, clock() - start, found)
        if number >= num_examples * len(trials):
            break
    return SeedKill(seed=seed, killed=False, examples=number, seconds=clock() - start)


def _killed(
    seed: int, trial: Trial, number: int, seconds: float, found: Sequence[Violation]
) -> SeedKill:
    lowest = min(found, key=lambda one: CATALOGUE[one.property_id].level)
    return SeedKill(
        seed=seed,
        killed=True,
        killed_by=lowest.property_id,
        level=CATALOGUE[lowest.property_id].level.label,
        trial=trial.name,
        examples=number,
        seconds=seconds,
        witness=str(lowest)[:400],
    )


def _row(mutant: Mutant, seeds: Sequence[SeedKill]) -> MutantKills:
    kills = [one for one in seeds if one.killed]
    lowest = min((CATALOGUE[one.killed_by].level for one in kills), default=None)
    by = Counter(one.killed_by for one in kills if CATALOGUE[one.killed_by].level == lowest)
    return MutantKills(
        id=mutant.id,
        bug=mutant.bug,
        statement=mutant.statement,
        expects=mutant.expects,
        killed=bool(kills) and len(kills) >= NEEDED_RATE * len(seeds),
        killed_by=by.most_common(1)[0][0] if by else "",
        level=lowest.label if lowest is not None else "",
        equivalent=mutant.equivalent,
        examples=_median_and_p90([one.examples for one in kills]),
        seconds=_median_and_p90([one.seconds for one in kills]),
        seeds_killed=len(kills),
        seeds_named=sum(one.named for one in seeds),
        seeds=tuple(seeds),
    )


def _median_and_p90(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    p90 = ordered[min(len(ordered) - 1, round(0.9 * (len(ordered) - 1)))]
    return round(median(ordered), 4), round(p90, 4)
