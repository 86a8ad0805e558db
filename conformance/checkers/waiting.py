"""Waiting for prefixes: do those wait who are overtaken, and is nobody admitted who must wait?"""

from collections.abc import Iterator

from pagetwin.conformance.facts import Entry, LedgerSequence, PlanFacts
from pagetwin.conformance.ledger import Ledger
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.shadow import CacheShadow
from pagetwin.conformance.waiting_line import overtakings
from pagetwin.engine.step import ScheduledSequence


class WaitCheck:
    """Judges sched.order, among the waiting, and sched.waits-for-prefix over one plan.

    Its entries come to `judge` in plan order, each while the cache is as the ones before it left
    it (docs/policy.md P2.4e).
    """

    def __init__(self, facts: PlanFacts, ledger: Ledger, cache: CacheShadow) -> None:
        self._ledger = ledger
        self._cache = cache
        self._waits = ledger.scheduler.wait_for_prefix and ledger.cache.enable_prefix_caching
        self._overtakings = overtakings(facts, ledger)
        self._rows: list[tuple[ScheduledSequence, LedgerSequence]] = []
        """Whose blocks are being computed, and are not yet in `_keys`."""
        self._keys: set[int] = set()
        if self._waits:
            for step in facts.in_flight:
                for row in ledger.steps_in_flight[step][1]:
                    if ledger.sequences.get(row.scheduled.seq_id) is row.sequence:
                        self._rows.append((row.scheduled, row.sequence))

    def judge(self, entry: Entry) -> Iterator[Violation]:
        """What is wrong with the plan's next entry, if it is an admission."""
        if entry.came_from == "waiting":
            yield from self._judge(entry)
        self._rows.append((entry.scheduled, entry.sequence))

    def _judge(self, entry: Entry) -> Iterator[Violation]:
        overtaking = next(self._overtakings)
        # Nothing has changed since it was decided about those whom this one overtakes first.
        without_cause = [one for one in overtaking.left if not self._must_wait(one)]
        if overtaking.later or without_cause:
            yield violation(
                "sched.order",
                self._ledger.step,
                "an admission overtook earlier ones, which wait for no block",
                admitted=entry.sequence.seq_id,
                overtaken=[one.seq_id for one in (*overtaking.later, *without_cause)],
            )
        if self._must_wait(entry.sequence):
            yield violation(
                "sched.waits-for-prefix",
                self._ledger.step,
                "a request was admitted while the next block that it could hit was being computed",
                admitted=entry.sequence.seq_id,
            )

    def _must_wait(self, sequence: LedgerSequence) -> bool:
        request = sequence.request
        if not self._waits or request.sampling_params.prompt_logprobs is not None:
            return False
        for scheduled, other in self._rows:
            filled = self._cache.filled(scheduled, other)
            self._keys.update(cached.key for _, cached in filled)
        self._rows.clear()
        return self._cache.next_key(request, sequence.tokens) in self._keys
