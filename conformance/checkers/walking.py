"""How a checker goes through a history: record by record, until it cannot be followed."""

from collections.abc import Callable, Iterator, Sequence

from pagetwin.conformance.facts import Facts
from pagetwin.conformance.ledger import HistoryBroken, Ledger, walk
from pagetwin.conformance.properties import Violation
from pagetwin.engine.trace import Record

CheckRecord = Callable[[Record, Ledger, Facts], Iterator[Violation]]


def judge(records: Sequence[Record], start: Callable[[], CheckRecord]) -> list[Violation]:
    """Runs a checker over a history. `start` makes the function that judges each record, with
    whatever it remembers from one to the next. A history that cannot be followed to its end
    gives the violation that says why, after those found before it."""
    check_record = start()
    found: list[Violation] = []
    try:
        for record, ledger, facts in walk(records):
            found.extend(check_record(record, ledger, facts))
    except HistoryBroken as broken:
        found.append(broken.found)
    return found
