"""A witness in words: what was asked, what happened step by step, and what is wrong with it."""

from collections.abc import Iterable, Iterator, Sequence

from pagetwin.conformance.properties import Violation
from pagetwin.engine.step import ScheduledSequence, StepPlan
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    PlanRecord,
    PreemptRecord,
    Record,
    RefuseRecord,
    ResetRecord,
    ResultRecord,
    SubmitRecord,
)


def tell(records: Iterable[Record], violations: Sequence[Violation] = ()) -> str:
    """One line for each event, and each violation below the first event of its step that shows
    it (the step's result, if there is one)."""
    lines = [(_step_of(record), line) for record in records for line in _lines(record)]
    last = {step: place for place, (step, _) in enumerate(lines)}
    below: dict[int, list[str]] = {}
    for one in violations:
        place = last.get(one.step, len(lines) - 1)
        below.setdefault(place, []).append(f"    !! {one}")
    told: list[str] = []
    for place, (_, line) in enumerate(lines):
        told += [line, *below.get(place, [])]
    return "\n".join(told) + "\n"


def _step_of(record: Record) -> int:
    if isinstance(record, PlanRecord):
        return record.plan.step
    return record.step if isinstance(record, ResultRecord) else -1


def _lines(record: Record) -> Iterator[str]:
    match record:
        case HeaderRecord():
            cache, limits = record.cache, record.scheduler
            yield (
                f"{cache.num_blocks - 1} blocks of {cache.block_size} tokens, "
                f"{cache.num_host_blocks} on the host; {limits.policy}, {limits.preemption_mode}, "
                f"{'asynchronous' if limits.async_scheduling else 'synchronous'}; at most "
                f"{limits.max_num_seqs} sequences, {limits.max_num_batched_tokens} tokens a step, "
                f"{limits.max_model_len} tokens each"
            )
        case SubmitRecord():
            params = record.request.sampling_params
            yield (
                f"submit {record.request.request_id}: prompt "
                f"{list(record.request.prompt_token_ids)}, {record.request.num_samples} samples of "
                f"at most {params.max_tokens} tokens"
            )
        case RefuseRecord():
            yield f"refuse {record.request.request_id}: {record.error}"
        case AbortRecord():
            yield f"abort {record.request_id}" + ("" if record.found else ": it does not live")
        case PreemptRecord():
            found = "" if record.found else ": nothing of it runs"
            yield f"force {record.request_id} to be preempted{found}"
        case ResetRecord():
            yield "reset the prefix cache" + ("" if record.done else ": refused, blocks are held")
        case PlanRecord():
            yield from _plan(record.plan, record.counters.num_free_blocks)
        case ResultRecord():
            yield from _result(record)


def _plan(plan: StepPlan, num_free: int) -> Iterator[str]:
    yield f"step {plan.step}, {num_free} blocks free after planning"
    for one in plan.preempted:
        yield f"  preempt {one.seq_id} by {one.mode}"
    for name, copies in (
        ("swap out", plan.swap_outs),
        ("swap in", plan.swap_ins),
        ("copy", plan.copies),
    ):
        if copies:
            yield f"  {name} " + ", ".join(f"{c.source} -> {c.destination}" for c in copies)
    tables = {one.seq_id: one for one in plan.introduced}
    for entry in plan.scheduled:
        yield "  " + _share(entry)
        if entry.seq_id in tables:
            intro = tables[entry.seq_id]
            yield f"    table {list(intro.block_ids)}, {intro.num_cached_tokens} tokens from cache"


def _share(entry: ScheduledSequence) -> str:
    end = entry.num_computed_tokens + entry.num_scheduled_tokens
    text = f"{entry.seq_id} computes [{entry.num_computed_tokens}, {end})"
    if entry.new_block_ids:
        text += f", takes blocks {list(entry.new_block_ids)}"
    if entry.replaced_blocks:
        text += f", replaces entries {dict(entry.replaced_blocks)}"
    return text + (", and samples" if entry.samples else "")


def _result(record: ResultRecord) -> Iterator[str]:
    tokens = ", ".join(f"{seq_id} says {token}" for seq_id, token in record.sampled.items())
    yield f"result of step {record.step}: {tokens or 'no token'}"
    for seq_id, reason in record.failed.items():
        yield f"  {seq_id} fails: {reason}"
    for parent, child in record.forked:
        yield f"  {parent} forks {child}"
    for end in record.finished:
        yield f"  {end.seq_id} ends: {end.reason}"
