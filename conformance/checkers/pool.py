"""Block pool: are blocks conserved, issued once, and written by one holder at a time?"""

from collections.abc import Iterator

from pagetwin.conformance.facts import Entry, Facts, PlanFacts
from pagetwin.conformance.ledger import Ledger
from pagetwin.conformance.properties import Violation, violation
from pagetwin.engine.trace import HeaderRecord, PlanRecord, Record, RefuseRecord


def check_record(record: Record, ledger: Ledger, facts: Facts) -> Iterator[Violation]:
    """Judges the properties kv.*."""
    yield from _conservation(record, ledger)
    if isinstance(facts, PlanFacts):
        for entry in facts.entries:
            yield from _issued_blocks(entry, ledger)
            yield from _table(entry, ledger)
        yield from _null_block(facts, ledger)
    if isinstance(record, PlanRecord):
        yield from _recorded_tables(record, ledger)


def _conservation(record: Record, ledger: Ledger) -> Iterator[Violation]:
    if isinstance(record, HeaderRecord | RefuseRecord):
        return
    counters = record.counters
    idle = not ledger.sequences and not ledger.steps_in_flight
    property_id = "kv.no-leak" if idle else "kv.conservation"
    for name in ("num_free_blocks", "num_free_host_blocks"):
        expected, counted = getattr(ledger.holdings, name), getattr(counters, name)
        if expected != counted:
            yield violation(
                property_id,
                ledger.step,
                f"{name} is not what the holders leave free",
                counted=counted,
                expected=expected,
            )
    leaked = [block for block, count in ledger.holdings.device.items() if count > 0]
    if idle and leaked:
        yield violation(
            "kv.no-leak", ledger.step, "blocks are held by nobody", blocks=sorted(leaked)
        )


def _issued_blocks(entry: Entry, ledger: Ledger) -> Iterator[Violation]:
    if entry.change.occupied:
        yield violation(
            "kv.takes-free",
            ledger.step,
            "a block was issued that something holds",
            seq_id=entry.sequence.seq_id,
            blocks=entry.change.occupied,
        )


def _null_block(facts: PlanFacts, ledger: Ledger) -> Iterator[Violation]:
    size, host_size = ledger.cache.num_blocks, ledger.cache.num_host_blocks
    plan = facts.plan
    device = [block for entry in facts.entries for block in entry.change.taken]
    device += [block for copy in plan.copies for block in copy]
    device += [copy.source for copy in plan.swap_outs]
    device += [copy.destination for copy in plan.swap_ins]
    host = [copy.destination for copy in plan.swap_outs] + [c.source for c in plan.swap_ins]
    wrong = [b for b in device if not 0 < b < size] + [b for b in host if not 0 <= b < host_size]
    if wrong:
        yield violation(
            "kv.null-block", plan.step, "a block id is null or out of range", blocks=wrong
        )


def _table(entry: Entry, ledger: Ledger) -> Iterator[Violation]:
    size = ledger.cache.block_size
    one = entry.scheduled
    start = one.num_computed_tokens
    table = entry.change.table
    needed = -(-(entry.end + ledger.scheduler.num_lookahead_slots) // size)
    if len(table) != needed:
        yield violation(
            "kv.table-covers",
            ledger.step,
            "a table has not the blocks that its tokens need",
            seq_id=one.seq_id,
            held=len(table),
            needed=needed,
        )
    for index in range(start // size, min(needed, len(table))):
        block = table[index]
        if block == 0:
            yield violation(
                "kv.null-block",
                ledger.step,
                "the null block is written",
                seq_id=one.seq_id,
                index=index,
            )
        elif ledger.holdings.device[block] != 1:
            yield violation(
                "kv.exclusive-write",
                ledger.step,
                "a block that is written has not one holder",
                seq_id=one.seq_id,
                block=block,
                holders=ledger.holdings.device[block],
            )


def _recorded_tables(record: PlanRecord, ledger: Ledger) -> Iterator[Violation]:
    for seq_id, recorded in record.block_tables.items():
        sequence = ledger.sequences.get(seq_id)
        rebuilt = tuple(sequence.table) if sequence is not None else None
        if rebuilt != tuple(recorded):
            yield violation(
                "kv.tables-recorded",
                ledger.step,
                "a recorded table is not the one that the plans made",
                seq_id=seq_id,
                recorded=recorded,
                rebuilt=rebuilt,
            )
    for intro in record.plan.introduced:
        sequence = ledger.sequences.get(intro.seq_id)
        if sequence is None or tuple(sequence.table) != intro.block_ids:
            yield violation(
                "kv.tables-recorded",
                ledger.step,
                "an introduced table is not the one that the plans made",
                seq_id=intro.seq_id,
                introduced=intro.block_ids,
                rebuilt=tuple(sequence.table) if sequence is not None else None,
            )
