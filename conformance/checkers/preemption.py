"""Preemption: is the right sequence preempted, cleanly, and does it come back whole?"""

from collections.abc import Iterator

from pagetwin.conformance.facts import Entry, Facts, PlanFacts
from pagetwin.conformance.ledger import Ledger
from pagetwin.conformance.properties import Violation, violation
from pagetwin.engine.step import BlockCopy
from pagetwin.engine.trace import Record


def check_record(record: Record, ledger: Ledger, facts: Facts) -> Iterator[Violation]:
    """Judges preempt.clean, preempt.resume-complete, preempt.victim, preempt.justified,
    preempt.forced and swap.round-trip (which blocks move; what they hold:
    checkers/copy_on_write.py)."""
    if not isinstance(facts, PlanFacts):
        return
    yield from _victims(facts, ledger)
    yield from _when(facts)
    yield from _forced(facts)
    yield from _swaps(facts)
    for entry in facts.entries:
        if entry.introduced_tokens is not None:
            yield from _return(entry, ledger)


def _victims(facts: PlanFacts, ledger: Ledger) -> Iterator[Violation]:
    scheduled = {entry.scheduled.seq_id for entry in facts.entries}
    for place, victim in enumerate(facts.victims):
        seq_id = victim.sequence.seq_id
        if victim.state_before != "running" or seq_id in scheduled:
            yield violation(
                "preempt.clean",
                ledger.step,
                "a preempted sequence did not run, or is in this step",
                seq_id=seq_id,
                state=victim.state_before,
            )
        if victim.has_row and seq_id not in facts.plan.dropped:
            yield violation(
                "preempt.clean",
                ledger.step,
                "a preempted sequence's row is not dropped",
                seq_id=seq_id,
            )
        known_order = ledger.scheduler.policy in ("fcfs", "priority")
        by_policy = place >= len(facts.forced)
        if known_order and by_policy and victim.due != seq_id:
            yield violation(
                "preempt.victim",
                ledger.step,
                "the victim is not the one that the order names",
                seq_id=seq_id,
                due=victim.due,
            )
        if victim.mode == "swap" and victim.sequence.request.beam_search is not None:
            yield violation("swap.round-trip", ledger.step, "a beam was swapped out", seq_id=seq_id)


def _when(facts: PlanFacts) -> Iterator[Violation]:
    if facts.victims and facts.in_flight:
        yield violation(
            "preempt.justified",
            facts.plan.step,
            "a sequence was preempted while a step was in flight",
            in_flight=facts.in_flight,
        )
    admitted = [e.scheduled.seq_id for e in facts.entries if e.came_from != "running"]
    if facts.victims and admitted:
        yield violation(
            "preempt.justified", facts.plan.step, "a step preempts and admits", admitted=admitted
        )


def _forced(facts: PlanFacts) -> Iterator[Violation]:
    """Those that were asked for come first, all of them, and before a step is in flight."""
    first = tuple(victim.sequence.seq_id for victim in facts.victims[: len(facts.forced)])
    if first != facts.forced:
        yield violation(
            "preempt.forced",
            facts.plan.step,
            "a plan does not begin with the forced preemptions that are due",
            preempted=first,
            due=facts.forced,
        )
    if facts.forced and facts.in_flight:
        yield violation(
            "preempt.forced",
            facts.plan.step,
            "a plan was made with a step in flight while a forced preemption was due",
            in_flight=facts.in_flight,
        )


def _swaps(facts: PlanFacts) -> Iterator[Violation]:
    plan = facts.plan
    saved: list[BlockCopy] = []
    for victim in facts.victims:
        saved += [BlockCopy(*pair) for pair in victim.saved if BlockCopy(*pair) not in saved]
    restored = [BlockCopy(*pair) for entry in facts.entries for pair in entry.change.restored]
    for name, expected, planned in (
        ("swap_outs", saved, list(plan.swap_outs)),
        ("swap_ins", restored, list(plan.swap_ins)),
    ):
        targets = [copy.destination for copy in planned]
        if expected != planned or len(set(targets)) != len(targets):
            yield violation(
                "swap.round-trip",
                plan.step,
                f"{name} are not those of the sequences' tables",
                planned=planned,
                expected=expected,
            )


def _return(entry: Entry, ledger: Ledger) -> Iterator[Violation]:
    sequence = entry.sequence
    known = tuple(sequence.tokens)
    if entry.introduced_tokens != known:
        yield violation(
            "preempt.resume-complete",
            ledger.step,
            "a sequence is introduced with other tokens than it has",
            seq_id=sequence.seq_id,
            introduced=entry.introduced_tokens,
            known=known,
        )
    if entry.scheduled.num_computed_tokens != entry.computed_before:
        yield violation(
            "preempt.resume-complete",
            ledger.step,
            "a sequence does not go on where its blocks end",
            seq_id=sequence.seq_id,
            from_position=entry.scheduled.num_computed_tokens,
            computed=entry.computed_before,
        )
