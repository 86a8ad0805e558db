"""Every checker over one history, record by record or all at once."""

from collections.abc import Callable, Iterator, Sequence

from pagetwin.conformance.catalogue import histories
from pagetwin.conformance.checkers import admission, pool, preemption, scheduler
from pagetwin.conformance.checkers.copy_on_write import ReadCheck
from pagetwin.conformance.checkers.prefix_cache import CacheCheck
from pagetwin.conformance.facts import Facts
from pagetwin.conformance.ledger import HistoryBroken, Ledger
from pagetwin.conformance.properties import Violation
from pagetwin.engine.errors import TraceError
from pagetwin.engine.trace import HeaderRecord, Record

JUDGED = tuple(row.id for row in histories.PROPERTIES)
"""The properties that `check_all` judges."""

CheckRecord = Callable[[Record, Ledger, Facts], Iterator[Violation]]
"""Judges a record, with the ledger after it and what it did."""


class RunningJudge:
    """All checkers over one ledger, as the history grows. May be pickled between two records."""

    def __init__(self) -> None:
        self.ledger: Ledger | None = None
        self._checks: tuple[CheckRecord, ...] = ()
        self._broken = False

    def feed(self, record: Record) -> list[Violation]:
        """The violations that the next record shows.

        The first record is the header (TraceError if not). A record that cannot be followed gives
        the violation that says why, and ends the judging: later ones give none.
        """
        if isinstance(record, HeaderRecord):
            self.ledger = Ledger(record.cache, record.scheduler)
            self._checks = (
                admission.check_record,
                pool.check_record,
                ReadCheck(),
                CacheCheck(),
                preemption.check_record,
                scheduler.check_record,
            )
            return []
        if self.ledger is None:
            raise TraceError("the history has no header; its first record must say what was run")
        if self._broken:
            return []
        try:
            facts = self.ledger.apply(record)
        except HistoryBroken as broken:
            self._broken = True
            return [broken.found]
        return [one for check in self._checks for one in check(record, self.ledger, facts)]


def check_all(records: Sequence[Record]) -> list[Violation]:
    """The violations that the history shows, each once, in order of the step."""
    judge = RunningJudge()
    found: dict[Violation, None] = {}
    for record in records:
        found.update(dict.fromkeys(judge.feed(record)))
    return sorted(found, key=lambda one: one.step)
