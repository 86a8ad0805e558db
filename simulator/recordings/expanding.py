"""Decides anew what a compact history left out, and sees that it was decided so."""

from collections.abc import Iterator

import msgspec

from pagetwin.engine.errors import RequestError, TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.step import StepPlan, StepResult, StepTimings
from pagetwin.engine.trace import (
    AbortRecord,
    PlanRecord,
    PreemptRecord,
    Record,
    RefuseRecord,
    ResetRecord,
    ResultRecord,
    SubmitRecord,
)
from pagetwin.simulator.recordings.columns import unpacked, unpacked_times
from pagetwin.simulator.recordings.compact import (
    DIGEST_BYTES,
    TIMINGS,
    CompactHistory,
    answer_digest,
    sampling_rows,
)
from pagetwin.simulator.replica import Replica


class _Expansion:
    """The twin at work: it decides again, and each answer's digest must be the recorded one."""

    def __init__(self, content: CompactHistory, name: str) -> None:
        self._content = content
        self._name = name
        self._twin = Replica(content.header.cache, content.header.scheduler)
        self._requests = _whole_requests(content)
        self._aborts = iter(content.aborts)
        self._preemptions = iter(content.preemptions)
        self._tokens = iter(unpacked(content.tokens))
        self._times = {name: iter(unpacked_times(data)) for name, data in content.times.items()}
        self._graph_sizes = iter(unpacked(content.graph_sizes))
        self._reasons = iter(unpacked(content.reason_numbers))
        self._plans: list[StepPlan] = []
        self._num_results = 0

    def records(self) -> Iterator[Record]:
        yield self._content.header
        make = {
            "s": self._submitted,
            "f": self._submitted,
            "a": self._aborted,
            "e": self._preempted,
            "x": self._reset,
            "p": self._planned,
            "r": self._closed,
        }
        digests = self._content.digests
        for number, letter in enumerate(self._content.events):
            record = make[letter]()
            start = number * DIGEST_BYTES
            if answer_digest(record) != digests[start : start + DIGEST_BYTES]:
                raise TraceError(
                    f"{self._name}: at event {number + 1} ({type(record).__name__}) the twin "
                    f"decided otherwise than the recorded engine; it decided {record!r:.400}"
                )
            yield record

    def _submitted(self) -> Record:
        request = next(self._requests)
        try:
            self._twin.add_request(request)
        except RequestError as error:
            return RefuseRecord(request=request, error=str(error))
        counters = self._twin.counters()
        return SubmitRecord(
            request=request, counters=counters, time_s=_or_none(next(self._times["submit"]))
        )

    def _aborted(self) -> Record:
        request_id = next(self._aborts)
        found = self._twin.abort_request(request_id)
        return AbortRecord(request_id=request_id, found=found, counters=self._twin.counters())

    def _preempted(self) -> Record:
        request_id = next(self._preemptions)
        found = self._twin.preempt_request(request_id)
        return PreemptRecord(request_id=request_id, found=found, counters=self._twin.counters())

    def _reset(self) -> Record:
        done = self._twin.reset_prefix_cache()
        return ResetRecord(done=done, counters=self._twin.counters())

    def _planned(self) -> Record:
        plan = self._twin.schedule()
        if plan is None:
            raise TraceError(f"{self._name}: the twin plans nothing where the engine did")
        self._plans.append(plan)
        return PlanRecord(
            plan=plan,
            counters=self._twin.counters(),
            schedule_s=next(self._times["schedule"]),
            time_s=_or_none(next(self._times["plan"])),
        )

    def _closed(self) -> Record:
        plan = self._plans.pop(0)
        irregular = self._content.irregular.get(self._num_results)
        self._num_results += 1
        if irregular is None:
            sampled = {seq_id: next(self._tokens) for seq_id in sampling_rows(plan)}
            result = StepResult(step=plan.step, sampled=sampled)
        else:
            result = irregular.to_result()
        timings = StepTimings(
            **{name: next(self._times[name]) for name in TIMINGS},
            graph_size=next(self._graph_sizes),
            eager_reason=self._content.eager_reasons[next(self._reasons)],
        )
        update = self._twin.update(plan, result)
        return ResultRecord.of(
            msgspec.structs.replace(result, timings=timings),
            update,
            self._twin.counters(),
            update_s=next(self._times["update"]),
            time_s=_or_none(next(self._times["result"])),
        )


def expanded(content: CompactHistory, name: str) -> Iterator[Record]:
    """The history's records, decided anew by the twin; block tables and error texts aside.

    Raises TraceError where the twin decides otherwise than the recorded engine did.
    """
    return _Expansion(content, name).records()


def _whole_requests(content: CompactHistory) -> Iterator[Request]:
    tokens, start = unpacked(content.prompt_tokens), 0
    lengths = unpacked(content.prompt_lengths)
    for request, length in zip(content.requests, lengths, strict=True):
        prompt = tuple(tokens[start : start + length])
        start += length
        yield msgspec.structs.replace(request, prompt_token_ids=prompt)


def _or_none(time_s: float) -> float | None:
    return None if time_s < 0 else time_s
