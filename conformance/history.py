"""Histories read back: steps grouped, tokens per sequence, and the books over time."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from pagetwin.conformance.ledger import Ledger, walk
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.step import Counters
from pagetwin.engine.trace import (
    HeaderRecord,
    PlanRecord,
    Record,
    RefuseRecord,
    ResultRecord,
    SubmitRecord,
)


class Step(msgspec.Struct, frozen=True):
    """A plan and its result; `result` is None where the history ends before it."""

    plan: PlanRecord
    result: ResultRecord | None


def header(records: Sequence[Record]) -> HeaderRecord:
    """The first record. Raises TraceError if it is not a header."""
    if not records or not isinstance(records[0], HeaderRecord):
        raise TraceError("the history has no header; its first record must say what was run")
    return records[0]


def steps(records: Iterable[Record]) -> list[Step]:
    """Each plan with its result, in the order of planning."""
    plans: list[PlanRecord] = []
    results: dict[int, ResultRecord] = {}
    for record in records:
        if isinstance(record, PlanRecord):
            plans.append(record)
        elif isinstance(record, ResultRecord):
            results[record.step] = record
    return [Step(record, results.get(record.plan.step)) for record in plans]


def requests(records: Iterable[Record]) -> dict[str, Request]:
    """The accepted requests, in order of submission."""
    return {
        record.request.request_id: record.request
        for record in records
        if isinstance(record, SubmitRecord)
    }


def refused(records: Iterable[Record]) -> dict[str, str]:
    """The refused requests' errors."""
    return {
        record.request.request_id: record.error
        for record in records
        if isinstance(record, RefuseRecord)
    }


def counters_timeline(records: Iterable[Record]) -> Iterator[tuple[int, Counters]]:
    """The books after each event, with the index of its record."""
    for index, record in enumerate(records):
        if not isinstance(record, HeaderRecord | RefuseRecord):
            yield index, record.counters


def output_tokens(records: Sequence[Record]) -> dict[str, list[int]]:
    """Output token ids of each sequence, in the order in which they took effect.

    Tokens of rows that came back after their sequence had ended are left out. Beams stand as the
    last selection of their search made them.
    """
    ledger: Ledger | None = None
    for _, current, _ in walk(records):
        ledger = current
    if ledger is None:
        return {}
    everyone = {**ledger.ended, **ledger.sequences}
    return {
        seq_id: sequence.tokens[sequence.request.num_prompt_tokens :]
        for seq_id, sequence in everyone.items()
    }
