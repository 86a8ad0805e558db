"""Copy-on-write: does each sequence read what it wrote, and is a block copied when it must be?"""

from collections.abc import Iterator

from pagetwin.conformance.facts import Facts, PlanFacts, ResultFacts, Row
from pagetwin.conformance.ledger import Ledger
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.shadow import SlotShadow
from pagetwin.engine.request import sequence_id
from pagetwin.engine.trace import Record, ResultRecord


class ReadCheck:
    """Judges cow.isolation, cow.copies and cow.fork-once, and by what is read also
    cache.hit-implies-equal and swap.round-trip.

    Compares what each row reads through its table with the row's own tokens.
    """

    def __init__(self) -> None:
        self._shadow: SlotShadow | None = None
        self._reason: dict[tuple[int, str], str] = {}

    def __call__(self, record: Record, ledger: Ledger, facts: Facts) -> Iterator[Violation]:
        if isinstance(facts, PlanFacts):
            self._planned(facts)
            yield from _copies(facts)
        elif isinstance(facts, ResultFacts) and isinstance(record, ResultRecord):
            yield from self._executed(facts, ledger)
            yield from _forks(record, facts)

    def _planned(self, facts: PlanFacts) -> None:
        for entry in facts.entries:
            if entry.came_from == "swapped":
                self._reason[facts.plan.step, entry.sequence.seq_id] = "swap.round-trip"
            elif entry.cached_tokens:
                self._reason[facts.plan.step, entry.sequence.seq_id] = "cache.hit-implies-equal"

    def _executed(self, facts: ResultFacts, ledger: Ledger) -> Iterator[Violation]:
        if self._shadow is None:
            self._shadow = SlotShadow(ledger.cache.block_size)
        self._shadow.execute(facts)
        for row in facts.rows:
            if row.ended_before:
                continue
            yield from _null_reads(row, ledger)
            position = self._shadow.wrong_position(row)
            if position is not None:
                reason = self._reason.get((facts.plan.step, row.sequence.seq_id), "cow.isolation")
                yield violation(
                    reason,
                    facts.plan.step,
                    "a sequence reads something else than its own token",
                    seq_id=row.sequence.seq_id,
                    position=position,
                    table=row.table,
                )


def _null_reads(row: Row, ledger: Ledger) -> Iterator[Violation]:
    """A null entry may stand only where the window of the row's first query does not reach."""
    size, window = ledger.cache.block_size, ledger.cache.sliding_window
    first = row.scheduled.num_computed_tokens
    reach = max(0, first - window + 1) // size if window else 0
    missing = [index for index, block in enumerate(row.table) if not block and index >= reach]
    if missing:
        yield violation(
            "cow.isolation",
            ledger.step,
            "a sequence reads the null block",
            seq_id=row.sequence.seq_id,
            entries=missing,
        )


def _copies(facts: PlanFacts) -> Iterator[Violation]:
    plan = facts.plan
    expected: list[tuple[int, int]] = []
    for entry in facts.entries:
        for one in entry.change.replaced:
            expected.append((one.old, one.new))
            if not one.was_shared:
                yield violation(
                    "cow.isolation",
                    plan.step,
                    "a block was copied though its sequence was the only holder",
                    seq_id=entry.sequence.seq_id,
                    index=one.index,
                    block=one.old,
                )
        change = entry.change
        if change.source is not None:
            expected.append((change.source, change.table[len(change.hits)]))
    if expected != [(copy.source, copy.destination) for copy in plan.copies]:
        yield violation(
            "cow.copies",
            plan.step,
            "the copies are not those of the replaced entries and partial hits",
            copies=plan.copies,
            expected=expected,
        )
    destinations = [copy.destination for copy in plan.copies]
    sources = {copy.source for copy in plan.copies}
    if len(set(destinations)) != len(destinations) or sources & set(destinations):
        yield violation("cow.copies", plan.step, "copies overwrite one another", copies=plan.copies)


def _forks(record: ResultRecord, facts: ResultFacts) -> Iterator[Violation]:
    """A group forks into all of its samples, exactly when its prompt is complete."""
    expected: list[tuple[str, str]] = []
    for row in facts.rows:
        request = row.sequence.request
        first = row.sequence.sample_index == 0 and row.scheduled.samples
        if row.ended_before or request.beam_search is not None or not first:
            continue
        if request.num_samples > 1 and row.end == request.num_prompt_tokens:
            expected += [
                (row.sequence.seq_id, sequence_id(request.request_id, i))
                for i in range(1, request.num_samples)
            ]
    refork = [pair for pair in expected if pair not in record.forked]
    extra = [pair for pair in record.forked if pair not in expected]
    if refork or extra:
        yield violation(
            "cow.fork-once",
            record.step,
            "a group did not fork as it should",
            missing=refork,
            extra=extra,
        )
