"""The line of the waiting: who stands before whom, and who is admitted first all the same."""

from collections.abc import Iterator
from dataclasses import dataclass

from pagetwin.conformance.facts import Entry, LedgerSequence, PlanFacts
from pagetwin.conformance.ledger import Ledger, priority_key


def stands_before(early: LedgerSequence, late: LedgerSequence, policy: str) -> bool:
    """Whether the order is known, and has `early` first (docs/policy.md P1.4, P3.2a).

    It is not known under registered policies, and among preempted sequences under fcfs.
    """
    if policy == "fcfs":
        return not late.preempted_before and (
            early.preempted_before or _arrival_key(early) < _arrival_key(late)
        )
    return policy == "priority" and priority_key(early) < priority_key(late)


@dataclass(frozen=True)
class Overtaking:
    """An admission, and those that it overtakes; often nobody."""

    entry: Entry
    later: list[LedgerSequence]
    """The plan admits them behind it."""
    left: list[LedgerSequence]
    """They go on waiting. Each stands where it is overtaken first in the plan, and only there."""


def overtakings(facts: PlanFacts, ledger: Ledger) -> Iterator[Overtaking]:
    """Each admission from the waiting line, in plan order."""
    policy = ledger.scheduler.policy
    admitted = [entry for entry in facts.entries if entry.came_from == "waiting"]
    waiting = ledger.in_state("waiting") if admitted else []
    for place, entry in enumerate(admitted, start=1):
        overtaken: list[LedgerSequence] = []
        others: list[LedgerSequence] = []
        for one in waiting:
            early = stands_before(one, entry.sequence, policy)
            (overtaken if early else others).append(one)
        waiting = others
        later = [other.sequence for other in admitted[place:]]
        later = [one for one in later if stands_before(one, entry.sequence, policy)]
        yield Overtaking(entry, later, overtaken)


def _arrival_key(sequence: LedgerSequence) -> tuple[float, str]:
    return (sequence.request.arrival_s, sequence.request.request_id)
