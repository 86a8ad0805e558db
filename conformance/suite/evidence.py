"""Evidence: what an experiment showed about a property, and the status that it adds up to."""

from enum import StrEnum

import msgspec

from pagetwin.conformance.properties import Violation
from pagetwin.conformance.scenario import Scenario
from pagetwin.engine.trace import Record


class Status(StrEnum):
    """How a property stands at the end of a run."""

    PASS = "pass"
    FAIL = "fail"
    VACUOUS = "vacuous"
    """Held, but what it is about did not happen: a goal was not met."""
    UNDECIDED = "undecided"
    """The budget ended before there was enough evidence."""
    UNSUPPORTED = "unsupported"
    """The engine does not show or do what it takes to judge; the reason says what."""
    WAIVED = "waived"
    """Not judged, by a written waiver with its reason and expiry."""
    ERROR = "error"
    """The experiment, or the engine under it, broke: no judgement."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of evidence on one property. Pieces add up: counts are of this piece alone."""

    property_id: str
    examples: int = 1
    """Independent examples in which the property was judged (requests, scenarios, draws)."""
    goals: dict[str, int] = {}
    """How often each thing that the property is about happened (Property.goals)."""
    violation: Violation | None = None
    scenario: Scenario | None = None
    """Replays the violation, where a scenario does."""
    records: tuple[Record, ...] = ()
    """The history that shows the violation, where there is one."""
    alpha_spent: float = 0.0
    """Chance of this piece's verdict being a false alarm; 0 for exact judgements."""
    undecided: str = ""
    """Why more evidence is needed; the last piece on a property says how it stands."""
    untrusted: str = ""
    """Why the harness itself cannot be trusted here: a positive control was not caught, an oracle
    failed its own check."""
    figures: dict[str, float] = {}
    """Numbers worth reporting (a margin, a p-value, a rate); a later piece's replace them."""


class PropertyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run says about one property."""

    property_id: str
    status: Status
    reason: str = ""
    """One sentence, for every status but pass."""
    experiments: tuple[str, ...] = ()
    examples: int = 0
    goals: dict[str, int] = {}
    violations: tuple[Violation, ...] = ()
    """The first few."""
    num_violations: int = 0
    scenario: str | None = None
    """File of the scenario that replays the first violation, relative to the run's folder."""
    first_failing_example: int | None = None
    alpha_spent: float = 0.0
    figures: dict[str, float] = {}
    seconds: float = 0.0
    """Of the experiments that judge it; an experiment that judges several counts for each."""
