"""Runs experiments over one engine, one after the other, within a budget."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    AdapterError,
    AdapterLied,
    EngineCrashed,
    SessionRefused,
)
from pagetwin.conformance.capability import Capabilities
from pagetwin.conformance.environment import versions
from pagetwin.conformance.experiments.scenarios import NO_CRASH, crashed
from pagetwin.conformance.properties import CATALOGUE
from pagetwin.conformance.statistics.family import FAMILY_ALPHA, split_alpha
from pagetwin.conformance.suite.evidence import Evidence, PropertyResult, Status
from pagetwin.conformance.suite.experiment import Budget, Experiment
from pagetwin.conformance.suite.profiles import Profile
from pagetwin.conformance.suite.registry import experiments as all_experiments
from pagetwin.conformance.suite.result import SuiteResult
from pagetwin.conformance.suite.tally import Tally


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked for."""

    spec: str
    profile: Profile
    budget_s: float
    seed: int = 0
    max_examples: int | None = None
    """Of each experiment; None leaves it to the clock."""


class Listener(Protocol):
    """Is told how a run goes on."""

    def begin(self, experiment: Experiment, seconds: float) -> None: ...

    def evidence(self, experiment: Experiment, piece: Evidence) -> None: ...

    def end(self, experiment: Experiment) -> None: ...


class _Silent:
    def begin(self, experiment: Experiment, seconds: float) -> None:
        """Says nothing."""

    def evidence(self, experiment: Experiment, piece: Evidence) -> None:
        """Says nothing."""

    def end(self, experiment: Experiment) -> None:
        """Says nothing."""


class SuiteRun:
    """One run. What it has learnt is there at any time, also when it is cut short."""

    def __init__(
        self,
        adapter: Adapter,
        options: RunOptions,
        *,
        experiments: Sequence[Experiment] | None = None,
        listener: Listener | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tallies: dict[str, Tally] = {}
        """By property id, for those that this engine lets one judge."""
        self._adapter = adapter
        self._options = options
        self._listener = listener or _Silent()
        self._clock = clock
        self._info = adapter.describe()
        self._capabilities = adapter.capabilities()
        self._unsupported: dict[str, str] = {}
        self._cut_short = ""
        self._lied = self._broke = False
        self._seconds = 0.0
        chosen = all_experiments() if experiments is None else experiments
        self._runnable = [one for one in chosen if self._can_run(one)]
        self._sort_properties(chosen)

    def run(self) -> SuiteResult:
        """Runs every experiment that the engine allows; an interrupt ends the run, not its result.

        No experiment runs twice. Time that one leaves goes to those after it; one that takes more
        takes it from them, and what none has begun when time is up stays undecided.
        """
        begun = self._clock()
        end = begun + self._options.budget_s
        waiting = [one for one in self._runnable if self._judged_by(one)]
        try:
            while waiting:
                weights = sum(one.weight for one in waiting)
                experiment = waiting.pop(0)
                left = end - self._clock()
                if left > 0:
                    self._run_one(experiment, left * experiment.weight / weights)
        except KeyboardInterrupt:
            self._cut_short = "interrupted"
        except AdapterLied as error:
            self._lied, self._cut_short = True, str(error)
        except AdapterError as error:
            self._broke, self._cut_short = True, str(error)
        self._seconds = self._clock() - begun
        return self.result()

    def result(self, scenario_files: Mapping[str, str] | None = None) -> SuiteResult:
        """What is known now. `scenario_files` names the files that replay violations."""
        files = scenario_files or {}
        return SuiteResult(
            engine=self._info,
            spec=self._options.spec,
            capabilities=self._capabilities.support,
            level=self._capabilities.level,
            profile=self._options.profile.name,
            is_claim=self._options.profile.is_claim,
            seed=self._options.seed,
            budget_s=self._options.budget_s,
            seconds=round(self._seconds, 3),
            family_alpha=FAMILY_ALPHA,
            complete=not self._cut_short,
            cut_short=self._cut_short,
            adapter_lied=self._lied,
            engine_broke=self._broke,
            results=tuple(
                self._result_of(row.id, files) for row in self._options.profile.properties
            ),
            versions=versions(),
        )

    def _result_of(self, property_id: str, files: Mapping[str, str]) -> PropertyResult:
        if property_id in self._unsupported:
            reason = self._unsupported[property_id]
            return PropertyResult(property_id=property_id, status=Status.UNSUPPORTED, reason=reason)
        tally = self.tallies[property_id]
        return tally.result(cut_short=self._cut_short, scenario_file=files.get(property_id))

    def _can_run(self, experiment: Experiment) -> bool:
        return self._capabilities.has(*experiment.needs)

    def _sort_properties(self, chosen: Sequence[Experiment]) -> None:
        """Decides of each property whether it can be judged here, or why not."""
        for row in self._options.profile.properties:
            judges = [one for one in chosen if row.id in one.judges]
            missing = self._capabilities.missing(row.needs)
            if missing or not any(one in self._runnable for one in judges):
                self._unsupported[row.id] = _why_not(missing, judges, self._capabilities)
            else:
                self.tallies[row.id] = Tally(row)

    def _judged_by(self, experiment: Experiment) -> list[Tally]:
        return [self.tallies[name] for name in experiment.judges if name in self.tallies]

    def _run_one(self, experiment: Experiment, seconds: float) -> None:
        options = self._options
        tallies = self._judged_by(experiment)
        alphas = false_alarm_shares()
        budget = Budget(seconds, alpha=alphas, max_examples=options.max_examples, clock=self._clock)
        self._listener.begin(experiment, seconds)
        begun = self._clock()
        try:
            for piece in experiment.run(self._adapter, budget, options.seed):
                assert piece.property_id in experiment.judges, piece.property_id
                if piece.property_id in self.tallies:
                    self.tallies[piece.property_id].add(experiment.id, piece)
                    self._listener.evidence(experiment, piece)
        except SessionRefused as error:
            # Nothing is wrong with the engine; it only has no session of the kind.
            for tally in tallies:
                piece = Evidence(property_id=tally.row.id, examples=0, undecided=str(error))
                tally.add(experiment.id, piece)
        except EngineCrashed as error:
            self._crashed(experiment, tallies, error)
        except AdapterError:
            raise
        except Exception as error:
            for tally in tallies:
                tally.error = f"experiment {experiment.id!r} broke: {type(error).__name__}: {error}"
        finally:
            for tally in tallies:
                tally.seconds += self._clock() - begun
            self._listener.end(experiment)

    def _crashed(
        self, experiment: Experiment, tallies: Sequence[Tally], error: EngineCrashed
    ) -> None:
        """Nothing that a client asks for may do that; what was to be judged is not, thereby."""
        if NO_CRASH not in {row.id for row in self._options.profile.properties}:
            raise error
        self._unsupported.pop(NO_CRASH, None)
        tally = self.tallies.setdefault(NO_CRASH, Tally(CATALOGUE[NO_CRASH]))
        tally.add(experiment.id, Evidence(property_id=NO_CRASH, violation=crashed(error)))
        for tally in tallies:
            if tally.row.id != NO_CRASH:
                text = f"the engine crashed: {error}"
                piece = Evidence(property_id=tally.row.id, examples=0, undecided=text)
                tally.add(experiment.id, piece)


def false_alarm_shares() -> dict[str, float]:
    """Each property's part of FAMILY_ALPHA: by its weight among the whole catalogue's, so that it
    does not depend on what an engine supports."""
    rows = CATALOGUE.values()
    return split_alpha({row.id: row.false_alarm_weight for row in rows if row.false_alarm_weight})


def _why_not(
    missing: Sequence[tuple[str, str]], judges: Sequence[Experiment], has: Capabilities
) -> str:
    if not missing:
        lacking = [has.missing(one.needs) for one in judges]
        missing = min(lacking, key=len) if lacking else []
    if not missing:
        return "no experiment of this run judges it"
    return "; ".join(f"{flag}: {reason}" for flag, reason in missing)
