"""Evidence added up, and the status that it amounts to."""

from collections import Counter

from pagetwin.conformance.catalogue.property import Property
from pagetwin.conformance.properties import Violation
from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.suite.evidence import Evidence, PropertyResult, Status
from pagetwin.engine.trace import Record

MOST_KEPT = 5
"""Violations of a property that are kept in full; all are counted."""


class Tally:
    """All that a run has shown about one property."""

    def __init__(self, row: Property) -> None:
        self.row = row
        self.scenario: Scenario | None = None
        """Replays the first violation that came with one."""
        self.records: tuple[Record, ...] = ()
        self.seconds = 0.0
        self.error = ""
        """Why an experiment that judges it broke off."""
        self.untrusted = ""
        self._experiments: dict[str, None] = {}
        self._examples = 0
        self._goals = Counter(dict.fromkeys(row.goals, 0))
        self._violations: list[Violation] = []
        self._num_violations = 0
        self._first_failing: int | None = None
        self._alpha = 0.0
        self._undecided: dict[str, str] = {}
        self._figures: dict[str, float] = {}

    @property
    def has_violations(self) -> bool:
        return self._num_violations > 0

    def add(self, experiment_id: str, piece: Evidence) -> None:
        self._experiments[experiment_id] = None
        self._examples += piece.examples
        self._goals.update(piece.goals)
        self._alpha += piece.alpha_spent
        self._undecided[experiment_id] = piece.undecided
        self._figures.update(piece.figures)
        self.untrusted = self.untrusted or piece.untrusted
        if piece.violation is None:
            return
        self._num_violations += 1
        if self._first_failing is None:
            self._first_failing = self._examples
        if len(self._violations) < MOST_KEPT:
            self._violations.append(piece.violation)
        if self.scenario is None and piece.scenario is not None:
            self.scenario, self.records = piece.scenario, piece.records

    def result(self, *, cut_short: str = "", scenario_file: str | None = None) -> PropertyResult:
        """How the property stands. `cut_short` says why the run ended early, if it did."""
        status, reason = self._status(cut_short)
        return PropertyResult(
            property_id=self.row.id,
            status=status,
            reason=reason,
            experiments=tuple(self._experiments),
            examples=self._examples,
            goals=dict(self._goals),
            violations=tuple(self._violations),
            num_violations=self._num_violations,
            scenario=scenario_file,
            first_failing_example=self._first_failing,
            alpha_spent=self._alpha,
            figures=self._figures,
            seconds=round(self.seconds, 3),
        )

    def _status(self, cut_short: str) -> tuple[Status, str]:
        undecided = [text for text in self._undecided.values() if text]
        unmet = [goal for goal in self.row.goals if not self._goals[goal]]
        if self.untrusted:
            return Status.ERROR, f"the harness cannot be trusted here: {self.untrusted}"
        if self._violations:
            return Status.FAIL, str(self._violations[0])
        if self.error:
            return Status.ERROR, self.error
        if not self._examples:
            why = cut_short or "; ".join(undecided) or "no example was judged within the budget"
            return Status.UNDECIDED, why
        if undecided:
            return Status.UNDECIDED, "; ".join(undecided)
        if unmet:
            ended = f" before the run ended ({cut_short})" if cut_short else ""
            return Status.VACUOUS, f"never happened{ended}: {', '.join(unmet)}"
        return Status.PASS, ""
