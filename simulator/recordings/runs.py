"""Decides what a history says of time: how long each step took, what each request saw.

A history may hold several runs (a benchmark's passes). One ends where the prefix cache is reset,
or where nothing is left to do and the next request is of another label: what stands before the
last slash of its id.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.step import Counters, StepPlan
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
from pagetwin.simulator.recordings.holders import BlockHolders
from pagetwin.simulator.recordings.steps import HostTimes, Step, StepTable


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
    plans: dict[int, StepComposition] = field(default_factory=dict)
    """Those in flight."""
    ahead: set[int] = field(default_factory=set)
    """Of them, those planned while another was in flight."""
    holders: BlockHolders = field(default_factory=BlockHolders)
    host: HostTimes = field(default_factory=HostTimes)
    steps: list[Step] = field(default_factory=list)
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
            self._plan(record.plan, record.time_s)
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
        if self.first_start_s > -float("inf"):
            self.host.begin(self.first_start_s)
        for one in self.together:
            one.due_s = self.first_start_s
        self.together, self.is_idle = [], False

    def _plan(self, plan: StepPlan, time_s: float | None) -> None:
        if self.is_idle:
            self._start(plan.step)
        if self.plans:
            self.ahead.add(plan.step)
        repeated = self.holders.note(plan) * self.header.cache.block_size
        self.plans[plan.step] = composition(plan, repeated)
        self.host.plan(plan.step, time_s)

    def _result(self, record: ResultRecord, now: float) -> None:
        number, timings = record.step, record.timings
        is_first = number == self.first_step
        start = self.first_start_s if is_first else self.last_result_s
        step = Step(
            parts=self.plans.pop(number),
            seconds=now - start,
            device_seconds=timings.device_s,
            graph_size=timings.graph_size,
            wait_seconds=timings.sample_s,
            is_first=is_first,
            is_ahead=number in self.ahead,
        )
        self.ahead.discard(number)
        self.host.result(number, step, timings, now)
        if start > -float("inf"):
            self.steps.append(step)
        self.last_result_s = now
        self._tokens(record, now)
        self.is_idle = not self.live and not self.plans
        if self.is_idle:
            self.host.idle()

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
        if not self.requests or not self.steps:
            return
        first = next(iter(self.requests.values())).request
        yield RecordedRun(
            label=_label(first) or self.default_label,
            header=self.header,
            requests=tuple(self.requests.values()),
            steps=StepTable.of(self.steps),
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
