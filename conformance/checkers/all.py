"""Every checker over one history."""

from collections.abc import Sequence

from pagetwin.conformance.catalogue import histories
from pagetwin.conformance.checkers import copy_on_write, pool, preemption, prefix_cache, scheduler
from pagetwin.conformance.properties import Violation
from pagetwin.engine.trace import Record

JUDGED = tuple(row.id for row in histories.PROPERTIES)
"""The properties that `check_all` judges."""


def check_all(records: Sequence[Record]) -> list[Violation]:
    """The violations that the history shows, each once, in order of the step."""
    found: dict[Violation, None] = {}
    for checker in (pool, copy_on_write, prefix_cache, preemption, scheduler):
        found.update(dict.fromkeys(checker.check(records)))
    return sorted(found, key=lambda one: one.step)
