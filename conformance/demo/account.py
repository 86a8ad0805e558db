"""What a run's history and outputs add up to: levels and events by step, and a row a request."""

from collections.abc import Iterable, Mapping, Sequence

from pagetwin.conformance.demo.block_map import BlockStates
from pagetwin.conformance.demo.result import RequestRow, StepPoint
from pagetwin.conformance.demo.workload import DemoRequest
from pagetwin.conformance.history import Step, counters_timeline
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.request import Request
from pagetwin.engine.step import Counters, ScheduledSequence
from pagetwin.engine.trace import Record

_EVENTS = (
    "prefix_hit_tokens",
    "partial_hits",
    "evictions",
    "cow_copies",
    "preemptions_recompute",
    "preemptions_swap",
    "aborts",
)


def step_points(
    steps: Iterable[Step], states: Mapping[int, BlockStates], num_blocks: int
) -> tuple[StepPoint, ...]:
    """One point a planned step. What happens between two steps counts to the later one."""
    points = []
    before = Counters()
    for step in steps:
        plan, after = step.plan.plan, step.plan.counters
        free = after.num_free_blocks
        cached = sum(state == "cached" for state, _ in states.get(plan.step, {}).values())
        decode = sum(row.num_scheduled_tokens for row in plan.scheduled if _decodes(row))
        points.append(
            StepPoint(
                step=plan.step,
                held_blocks=num_blocks - 1 - free,
                cached_free_blocks=min(cached, free),
                free_blocks=max(0, free - cached),
                waiting=after.num_waiting,
                running=after.num_running,
                swapped=after.num_swapped,
                prompt_tokens=plan.num_scheduled_tokens - decode,
                decode_tokens=decode,
                duration_s=step_seconds(step),
                **{name: getattr(after, name) - getattr(before, name) for name in _EVENTS},
            )
        )
        before = after
    return tuple(points)


def step_seconds(step: Step) -> float:
    """What the step took: planning, execution, sampling and closing."""
    if step.result is None:
        return step.plan.schedule_s
    timings = step.result.timings
    model = timings.prepare_s + timings.execute_s + timings.sample_s
    return step.plan.schedule_s + model + step.result.update_s


def _decodes(row: ScheduledSequence) -> bool:
    return row.samples and row.num_scheduled_tokens == 1


def full_block_hits(steps: Iterable[Step], block_size: int) -> int:
    """Whole cached blocks that admissions took over, returns after a preemption included."""
    return sum(
        introduced.num_cached_tokens // block_size
        for step in steps
        for introduced in step.plan.plan.introduced
    )


def last_counters(records: Iterable[Record]) -> Counters:
    """The books at the end of the run."""
    books = [counters for _, counters in counters_timeline(records)]
    return books[-1] if books else Counters()


def request_rows(
    workload: Sequence[DemoRequest], steps: Sequence[Step], outputs: Mapping[str, RequestOutput]
) -> tuple[RequestRow, ...]:
    """One row a request, in order of submission."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    preemptions: dict[str, int] = {}
    for step in steps:
        plan = step.plan.plan
        for row in plan.scheduled:
            request_id = _request_of(row.seq_id)
            first.setdefault(request_id, plan.step)
            last[request_id] = plan.step
        for preemption in plan.preempted:
            request_id = _request_of(preemption.seq_id)
            preemptions[request_id] = preemptions.get(request_id, 0) + 1
    rows = []
    for client in workload:
        request = client.request
        output = outputs.get(request.request_id)
        samples = output.outputs if output is not None else ()
        reasons = dict.fromkeys(one.finish_reason or "unfinished" for one in samples)
        rows.append(
            RequestRow(
                request_id=request.request_id,
                family=client.family,
                priority=request.priority,
                num_samples=request.num_samples,
                greedy=is_greedy(request),
                num_prompt_tokens=request.num_prompt_tokens,
                num_output_tokens=sum(len(one.token_ids) for one in samples),
                num_cached_tokens=output.num_cached_tokens if output is not None else 0,
                submitted_step=client.submit_step,
                first_scheduled_step=first.get(request.request_id),
                ended_step=last.get(request.request_id),
                preemptions=preemptions.get(request.request_id, 0),
                finish=", ".join(reasons) or "none",
            )
        )
    return tuple(rows)


def is_greedy(request: Request) -> bool:
    """Whether every token is the most likely one, so that an oracle can say which."""
    return request.sampling_params.temperature == 0.0 and request.num_samples == 1


def _request_of(seq_id: str) -> str:
    return seq_id.rpartition("/")[0]
