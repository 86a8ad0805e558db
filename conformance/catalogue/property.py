"""One row of the catalogue."""

import msgspec

from pagetwin.conformance.capability import Flag, Level


class Property(msgspec.Struct, frozen=True, kw_only=True):
    """A statement that holds of every right engine. Ids are `area.name` and are never reused."""

    id: str
    statement: str
    needs: tuple[Flag, ...]
    """What an engine must show or do for the statement to be judged."""
    level: Level
    goals: tuple[str, ...] = ()
    """What must have happened at least once, or a pass would say nothing."""
    since: str = "0.1"
    """The suite's version that first had it."""
    false_alarm_weight: float = 0.0
    """Its share of the run's false alarms, relative to the others'; 0 for exact judgements."""
