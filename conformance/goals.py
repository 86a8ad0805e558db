"""Goals: what happened in a history, counted, so that a run can prove that it was not vacuous."""

from collections import Counter
from collections.abc import Sequence

from pagetwin.conformance.facts import PlanFacts, ResultFacts
from pagetwin.conformance.ledger import HistoryBroken, Ledger, walk
from pagetwin.conformance.waiting_line import overtakings
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    PreemptRecord,
    Record,
    RefuseRecord,
    ResetRecord,
    ResultRecord,
)

GOALS = (
    "requests refused",
    "chunks that end before the prompt",
    "full hits",
    "partial hits",
    "hits at a block edge but for the last token",
    "requests passed over",
    "evictions",
    "copy-on-write copies",
    "forks",
    "beam selections",
    "beam searches over",
    "recompute preemptions",
    "swap preemptions",
    "forced recompute preemptions",
    "forced swap preemptions",
    "forced preemptions asked for in flight",
    "forced preemptions of what does not run",
    "returns after recompute",
    "hits of a returning sequence's own blocks",
    "swap-ins",
    "preemptions before the first token",
    "aborts while waiting",
    "aborts in prefill",
    "aborts in decode",
    "aborts while swapped",
    "aborts while in flight",
    "aborts of nothing",
    "plans with a step in flight",
    "rows of ended sequences",
    "window releases",
    "resets done",
    "resets refused",
    "ends by stop",
    "ends by length",
    "ends by error",
    "beam searches failed",
    "plans that only preempt",
    "blocks with three holders",
    "empty pools",
)


def count_goals(records: Sequence[Record]) -> Counter[str]:
    """How often each of GOALS happened in the history."""
    counts: Counter[str] = Counter()
    phases = _Phases()
    for record in records:
        counts["requests refused"] += isinstance(record, RefuseRecord)
        if not isinstance(record, HeaderRecord | RefuseRecord):
            counts["empty pools"] += record.counters.num_free_blocks == 0
    last = next(
        (r for r in reversed(records) if not isinstance(r, HeaderRecord | RefuseRecord)), None
    )
    if last is not None:
        counts["evictions"] += last.counters.evictions
    try:
        for record, ledger, facts in walk(records):
            if isinstance(record, AbortRecord):
                counts[f"aborts {phases.of(record)}"] += 1
                if record.found and phases.in_flight(record.request_id):
                    counts["aborts while in flight"] += 1
            elif isinstance(record, PreemptRecord):
                in_flight = record.found and phases.in_flight(record.request_id)
                counts["forced preemptions asked for in flight"] += in_flight
                counts["forced preemptions of what does not run"] += not record.found
            elif isinstance(record, ResetRecord):
                counts["resets done" if record.done else "resets refused"] += 1
            elif isinstance(facts, PlanFacts):
                _count_plan(facts, ledger, counts)
            elif isinstance(facts, ResultFacts) and isinstance(record, ResultRecord):
                _count_result(record, facts, counts)
            phases.remember(ledger)
    except HistoryBroken:
        pass
    return counts


class _Phases:
    """In which phase each request was before the event at hand."""

    def __init__(self) -> None:
        self._phase: dict[str, str] = {}
        self._in_flight: set[str] = set()

    def of(self, record: AbortRecord) -> str:
        return self._phase.get(record.request_id, "of nothing") if record.found else "of nothing"

    def in_flight(self, request_id: str) -> bool:
        return request_id in self._in_flight

    def remember(self, ledger: Ledger) -> None:
        self._phase.clear()
        self._in_flight.clear()
        for sequence in ledger.sequences.values():
            request = sequence.request
            if sequence.in_steps:
                self._in_flight.add(request.request_id)
            if sequence.state != "running":
                self._phase[request.request_id] = f"while {sequence.state}"
            elif sequence.computed < request.num_prompt_tokens:
                self._phase[request.request_id] = "in prefill"
            else:
                self._phase[request.request_id] = "in decode"


def _count_plan(facts: PlanFacts, ledger: Ledger, counts: Counter[str]) -> None:
    counts["plans with a step in flight"] += bool(facts.in_flight)
    counts["plans that only preempt"] += not facts.entries
    counts["blocks with three holders"] += max(ledger.holdings.device.values(), default=0) >= 3
    if ledger.scheduler.wait_for_prefix:
        counts["requests passed over"] += sum(len(one.left) for one in overtakings(facts, ledger))
    for place, victim in enumerate(facts.victims):
        counts[f"{victim.mode} preemptions"] += 1
        counts[f"forced {victim.mode} preemptions"] += place < len(facts.forced)
        sequence = victim.sequence
        if len(sequence.tokens) == sequence.request.num_prompt_tokens:
            counts["preemptions before the first token"] += 1
    for entry in facts.entries:
        size = ledger.cache.block_size
        prompt = entry.sequence.request.num_prompt_tokens
        counts["chunks that end before the prompt"] += entry.end < prompt
        counts["full hits"] += bool(entry.change.hits)
        counts["partial hits"] += entry.change.source is not None
        counts["copy-on-write copies"] += len(entry.change.replaced)
        counts["swap-ins"] += entry.came_from == "swapped"
        if entry.cached_tokens and entry.cached_tokens == entry.num_known - 1:
            counts["hits at a block edge but for the last token"] += entry.num_known % size == 0
        if entry.came_from == "waiting" and entry.sequence.preempted_before:
            counts["returns after recompute"] += 1
            counts["hits of a returning sequence's own blocks"] += bool(entry.cached_tokens)


def _count_result(record: ResultRecord, facts: ResultFacts, counts: Counter[str]) -> None:
    counts["beam searches failed"] += any(
        row.scheduled.seq_id in record.failed and row.sequence.request.beam_search is not None
        for row in facts.rows
        if not row.ended_before
    )
    counts["forks"] += len(record.forked)
    counts["beam selections"] += sum(not one.finished for one in record.selections)
    counts["beam searches over"] += sum(one.finished for one in record.selections)
    counts["rows of ended sequences"] += sum(row.ended_before for row in facts.rows)
    counts["window releases"] += len(facts.released)
    for one in record.finished:
        counts[f"ends by {one.reason}"] += 1
