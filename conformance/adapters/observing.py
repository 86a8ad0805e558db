"""What a client would have seen of a run, from the records of its steps."""

from collections.abc import Iterator, Sequence

from pagetwin.conformance.observation import (
    AnyObservation,
    CachedTokens,
    Cancelled,
    Finished,
    Refused,
    Submitted,
    TokenSeen,
)
from pagetwin.engine.step import StepPlan
from pagetwin.engine.trace import (
    AbortRecord,
    PlanRecord,
    Record,
    RefuseRecord,
    ResultRecord,
    SubmitRecord,
)


def split_sequence_id(seq_id: str) -> tuple[str, int]:
    """(request id, sample index) of a sequence's name (docs/policy.md P1.6)."""
    request_id, _, index = seq_id.rpartition("/")
    return request_id, int(index)


def observe(records: Sequence[Record]) -> Iterator[AnyObservation]:
    """The black box's view of a history, without its `opened`.

    The tokens of a beam search are not seen one by one: until it ends, each is provisional.
    """
    seen = _Client()
    for record in records:
        yield from seen.of(record)


class _Client:
    """Which requests live, as a client knows it."""

    def __init__(self) -> None:
        self._over: set[str] = set()
        """Sequences that ended, by themselves or with their request."""
        self._cancelled: set[str] = set()
        self._begun: set[str] = set()

    def of(self, record: Record) -> Iterator[AnyObservation]:
        if isinstance(record, SubmitRecord | RefuseRecord):
            request = record.request
            yield Submitted(
                request_id=request.request_id, prompt_token_ids=request.prompt_token_ids
            )
            if isinstance(record, RefuseRecord):
                yield Refused(request_id=request.request_id, error=record.error)
        elif isinstance(record, AbortRecord) and record.found:
            self._cancelled.add(record.request_id)
            yield Cancelled(request_id=record.request_id)
        elif isinstance(record, PlanRecord):
            yield from self._admissions(record.plan)
        elif isinstance(record, ResultRecord):
            yield from self._result(record)

    def _admissions(self, plan: StepPlan) -> Iterator[AnyObservation]:
        for one in plan.introduced:
            if one.request_id not in self._begun:
                self._begun.add(one.request_id)
                yield CachedTokens(request_id=one.request_id, count=one.num_cached_tokens)

    def _result(self, record: ResultRecord) -> Iterator[AnyObservation]:
        for seq_id, token in record.sampled.items():
            request_id, index = split_sequence_id(seq_id)
            if request_id not in self._cancelled and seq_id not in self._over:
                yield TokenSeen(request_id=request_id, sample_index=index, token_id=token)
        for one in record.finished:
            self._over.add(one.seq_id)
            request_id, index = split_sequence_id(one.seq_id)
            yield Finished(
                request_id=request_id,
                sample_index=index,
                reason=one.reason,
                stop_reason=one.stop_reason,
            )
