"""Who held each KV block during each step, worked out from a history alone.

Tables come from the checkers' ledger and cached blocks from their shadow of the prefix cache;
neither asks the engine or the twin.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

from pagetwin.conformance.demo.result import BlockSpan
from pagetwin.conformance.facts import PlanFacts, ResultFacts
from pagetwin.conformance.ledger import HistoryBroken, Ledger, walk
from pagetwin.conformance.shadow import CacheShadow
from pagetwin.engine.trace import Record, ResetRecord

BlockState = tuple[Literal["held", "cached"], tuple[str, ...]]
BlockStates = dict[int, BlockState]
"""State and sequences of every block that is not simply free, by block id."""


def pool_states(records: Iterable[Record]) -> Iterator[tuple[int, BlockStates]]:
    """For each planned step, what every block is during it.

    A history that cannot be followed ends early: the checkers say why.
    """
    cache: CacheShadow | None = None
    filled_by: dict[int, str] = {}
    try:
        for record, ledger, facts in walk(records):
            if cache is None:
                cache = CacheShadow(ledger.cache.block_size)
            if isinstance(facts, PlanFacts):
                for entry in facts.entries:
                    cache.take(entry.change.taken)
                yield facts.plan.step, _states(ledger, cache, filled_by)
            elif isinstance(facts, ResultFacts) and ledger.cache.enable_prefix_caching:
                for row in facts.rows:
                    if not row.ended_before:
                        new = [block for block in row.table if block not in cache]
                        cache.enter(row)
                        filled_by.update((b, row.sequence.seq_id) for b in new if b in cache)
            elif isinstance(record, ResetRecord) and record.done:
                cache.clear()
    except HistoryBroken:
        return


def block_spans(states: Iterable[tuple[int, BlockStates]]) -> tuple[BlockSpan, ...]:
    """The same as runs of equal state, by block and step."""
    spans: list[BlockSpan] = []
    since: dict[int, tuple[int, BlockState]] = {}
    end = 0
    for step, blocks in states:
        for block_id in [b for b, (_, state) in since.items() if blocks.get(b) != state]:
            first, state = since.pop(block_id)
            spans.append(BlockSpan(block_id, first, step, *state))
        for block_id, state in blocks.items():
            since.setdefault(block_id, (step, state))
        end = step + 1
    spans += [BlockSpan(block_id, first, end, *state) for block_id, (first, state) in since.items()]
    return tuple(sorted(spans, key=lambda span: (span.block_id, span.first_step)))


def _states(ledger: Ledger, cache: CacheShadow, filled_by: dict[int, str]) -> BlockStates:
    states: BlockStates = {
        block_id: ("cached", (seq_id,))
        for block_id, seq_id in filled_by.items()
        if block_id in cache
    }
    owners: dict[int, list[str]] = {}
    for sequence in ledger.sequences.values():
        for block_id in sequence.table:
            if block_id:
                owners.setdefault(block_id, []).append(sequence.seq_id)
    for block_id, names in owners.items():
        states[block_id] = ("held", tuple(sorted(names)))
    return states
