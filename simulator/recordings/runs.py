"""Decides what a history says of time: how long each step took, what each request saw.

A history may hold several runs (a benchmark's passes). One ends where the prefix cache is reset,
or where nothing is left to do and the next request is of another label: what stands before the
last slash of its id.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.step import Counters
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    PlanRecord,
    Record,
    RefuseRecord,
    ResetRecord,
    ResultRecord,
    SubmitRecord,
)
from pagetwin.simulator.cost_model import StepComposition, composition

Floats = NDArray[np.float64]

PARTS = StepComposition.__struct_fields__


class StepTable(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of one or several runs, one row each."""

    parts: Floats
    """[num_steps, len(PARTS)]: the composition, its fields in the order of PARTS."""
    seconds: Floats
    graph_sizes: Floats
    """0 where no CUDA graph ran the step."""
    launch_seconds: Floats
    """The host's part of the forward pass (StepTimings.execute_s)."""
    is_first: NDArray[np.bool_]
    """Whether the engine had been idle: such a step waits for all that others hide."""

    def __len__(self) -> int:
        return len(self.seconds)

    def column(self, name: str) -> Floats:
        column: Floats = self.parts[:, PARTS.index(name)]
        return column

    def compositions(self) -> Iterator[StepComposition]:
        for row in self.parts.astype(np.int64).tolist():
            yield StepComposition(**dict(zip(PARTS, row, strict=True)))

    @classmethod
    def joined(cls, tables: Iterable["StepTable"]) -> "StepTable":
        some = list(tables)
        return cls(
            parts=np.concatenate([t.parts for t in some]) if some else np.zeros((0, len(PARTS))),
            seconds=np.concatenate([t.seconds for t in some]) if some else np.zeros(0),
            graph_sizes=np.concatenate([t.graph_sizes for t in some]) if some else np.zeros(0),
            launch_seconds=(
                np.concatenate([t.launch_seconds for t in some]) if some else np.zeros(0)
            ),
            is_first=np.concatenate([t.is_first for t in some]) if some else np.zeros(0, bool),
        )


@dataclass(slots=True)
class RecordedRequest:
    """A request and what became of it, in seconds of the history's clock."""

    request: Request
    arrival_s: float
    submit_s: float
    """When it was handed in, after its arrival."""
    due_s: float
    """When a twin is to have it: at its arrival, or, if the engine was idle, when the last of those
    that came together was handed in, because no step began before."""
    first_token_s: float | None = None
    finish_s: float | None = None
    num_output_tokens: int = 0
    was_aborted: bool = False


@dataclass(frozen=True)
class RecordedRun:
    """One run of a history."""

    label: str
    header: HeaderRecord
    requests: tuple[RecordedRequest, ...]
    steps: StepTable
    end_s: float
    prefix_hit_share: float = 0.0
    """Of the tokens looked up in the prefix cache, those found."""

    @property
    def workload(self) -> str:
        """The label's first part."""
        return self.label.partition("/")[0]

    @property
    def start_s(self) -> float:
        return min(one.arrival_s for one in self.requests)


def read_runs(records: Iterable[Record]) -> Iterator[RecordedRun]:
    """The runs of a history, one at a time; those without a request or a step are left out.

    Raises TraceError if the records carry no times, as those of a driver without a clock.
    """
    builder: _Builder | None = None
    header: HeaderRecord | None = None
    number = 1
    for record in records:
        if isinstance(record, HeaderRecord):
            header = record
            continue
        if header is None:
            raise TraceError("the history has no header; its first record must say what was run")
        starts = isinstance(record, ResetRecord) or (
            isinstance(record, SubmitRecord)
            and builder is not None
            and builder.is_over_before(record)
        )
        if starts and builder is not None:
            yield from builder.runs()
            builder, number = None, number + 1
        if builder is None:
            builder = _Builder(header, f"run-{number}")
        builder.add(record)
    if builder is not None:
        yield from builder.runs()


@dataclass
class _Builder:
    """Collects one run."""

    header: HeaderRecord
    default_label: str
    requests: dict[str, RecordedRequest] = field(default_factory=dict)
    live: dict[str, set[int]] = field(default_factory=dict)
    """Samples that are not over, by request."""
    plans: dict[int, PlanRecord] = field(default_factory=dict)
    rows: list[tuple[StepComposition, float, int, float, bool]] = field(default_factory=list)
    is_idle: bool = True
    together: list[RecordedRequest] = field(default_factory=list)
    """Handed in since it is."""
    first_step: int = -1
    """The last one that began after an idle time, and when that was."""
    first_start_s: float = -float("inf")
    last_result_s: float = -float("inf")
    first_counters: Counters | None = None
    last_counters: Counters | None = None

    def is_over_before(self, record: SubmitRecord) -> bool:
        if self.live or self.plans or not self.requests:
            return False
        return _label(record.request) != _label(next(iter(self.requests.values())).request)

    def add(self, record: Record) -> None:
        if not isinstance(record, HeaderRecord | RefuseRecord):
            self.first_counters = self.first_counters or record.counters
            self.last_counters = record.counters
        if isinstance(record, SubmitRecord):
            self._submit(record.request, _time(record.time_s, "a submission"))
        elif isinstance(record, PlanRecord):
            self.plans[record.plan.step] = record
            if self.is_idle:
                self._start(record.plan.step)
        elif isinstance(record, ResultRecord):
            self._result(record, _time(record.time_s, f"the result of step {record.step}"))
        elif isinstance(record, AbortRecord) and record.found:
            self.requests[record.request_id].was_aborted = True
            self.live.pop(record.request_id, None)

    def _submit(self, request: Request, now: float) -> None:
        # Drivers that order requests by other means say 0, or are on another clock.
        is_on_clock = 0 < request.arrival_s <= now
        arrival_s = request.arrival_s if is_on_clock else now
        one = RecordedRequest(request, arrival_s, submit_s=now, due_s=arrival_s)
        self.requests[request.request_id] = one
        self.live[request.request_id] = set(range(request.num_samples))
        if self.is_idle:
            self.together.append(one)

    def _start(self, step: int) -> None:
        handed_in = [one.submit_s for one in self.together]
        self.first_step = step
        self.first_start_s = max(handed_in, default=self.last_result_s)
        for one in self.together:
            one.due_s = self.first_start_s
        self.together, self.is_idle = [], False

    def _result(self, record: ResultRecord, now: float) -> None:
        plan = self.plans.pop(record.step).plan
        is_first = record.step == self.first_step
        start = self.first_start_s if is_first else self.last_result_s
        if start > -float("inf"):
            parts, timings = composition(plan), record.timings
            self.rows.append((parts, now - start, timings.graph_size, timings.execute_s, is_first))
        self.last_result_s = now
        self._tokens(record, now)
        self.is_idle = not self.live and not self.plans

    def _tokens(self, record: ResultRecord, now: float) -> None:
        for seq_id in record.sampled:
            one = self.requests.get(seq_id.rpartition("/")[0])
            if one is None or one.finish_s is not None or one.was_aborted:
                continue
            one.num_output_tokens += 1
            if one.first_token_s is None:
                one.first_token_s = now
        for ending in record.finished:
            request_id, _, sample = ending.seq_id.rpartition("/")
            left = self.live.get(request_id)
            if left is None:
                continue
            left.discard(int(sample))
            if not left or self.requests[request_id].request.beam_search is not None:
                self.requests[request_id].finish_s = now
                del self.live[request_id]

    def runs(self) -> Iterator[RecordedRun]:
        if not self.requests or not self.rows:
            return
        first = next(iter(self.requests.values())).request
        parts = [msgspec.structs.astuple(row[0]) for row in self.rows]
        yield RecordedRun(
            label=_label(first) or self.default_label,
            header=self.header,
            requests=tuple(self.requests.values()),
            steps=StepTable(
                parts=np.array(parts, np.float64),
                seconds=np.array([row[1] for row in self.rows]),
                graph_sizes=np.array([row[2] for row in self.rows], np.float64),
                launch_seconds=np.array([row[3] for row in self.rows]),
                is_first=np.array([row[4] for row in self.rows], np.bool_),
            ),
            end_s=self.last_result_s,
            prefix_hit_share=self._hit_share(),
        )

    def _hit_share(self) -> float:
        first, last = self.first_counters, self.last_counters
        if first is None or last is None:
            return 0.0
        queries = last.prefix_queries - first.prefix_queries
        return (last.prefix_hit_tokens - first.prefix_hit_tokens) / queries if queries else 0.0


def _label(request: Request) -> str:
    return request.request_id.rpartition("/")[0]


def _time(time_s: float | None, what: str) -> float:
    if time_s is None:
        raise TraceError(
            f"{what} has no time in this history: whoever wrote it had no clock; record one with "
            "'pagetwin bench offline --record'"
        )
    return time_s
