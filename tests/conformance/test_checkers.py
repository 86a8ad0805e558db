"""Each checker sees the fault that it is for: good histories pass, corrupted ones do not.

A corruption is a function from a good history to histories with one fault each. Every one that is
tried must be noticed, and by the property that is named at least once.
"""

from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pagetwin.conformance.checkers.all import JUDGED, check_all
from pagetwin.conformance.scenario import load_scenario
from pagetwin.conformance.twins import judge_scenario
from pagetwin.engine.step import BlockCopy, StepPlan
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

History = list[Record]
Corruption = Callable[[History], Iterator[History]]
replace = msgspec.structs.replace
PLACES = 6
"""Most places of one history in which a corruption is tried."""


@pytest.fixture(scope="module")
def histories() -> list[History]:
    folder = Path(__file__).parent / "corpus"
    return [judge_scenario(load_scenario(path)).records for path in sorted(folder.glob("*.json"))]


def each(kind: type[Any], edit: Callable[[Any], Record | None]) -> Corruption:
    """Applies `edit` to one record of the kind at a time, wherever it gives something."""

    def corrupt(history: History) -> Iterator[History]:
        for index, record in enumerate(history):
            edited = edit(record) if isinstance(record, kind) else None
            if edited is not None and edited != record:
                yield [*history[:index], edited, *history[index + 1 :]]

    return corrupt


def each_plan(edit: Callable[[StepPlan], StepPlan | None]) -> Corruption:
    def edit_record(record: PlanRecord) -> PlanRecord | None:
        plan = edit(record.plan)
        return None if plan is None else replace(record, plan=plan)

    return each(PlanRecord, edit_record)


def each_entry(**changes: Callable[[Any], Any]) -> Corruption:
    """Changes fields of the first scheduled entry that they change."""

    def edit(plan: StepPlan) -> StepPlan | None:
        for index, entry in enumerate(plan.scheduled):
            changed = replace(
                entry, **{name: change(getattr(entry, name)) for name, change in changes.items()}
            )
            if changed != entry:
                others = plan.scheduled
                return replace(plan, scheduled=(*others[:index], changed, *others[index + 1 :]))
        return None

    return each_plan(edit)


def each_introduction(edit: Callable[[Any], Any]) -> Corruption:
    def edit_plan(plan: StepPlan) -> StepPlan:
        return replace(plan, introduced=tuple(edit(intro) for intro in plan.introduced))

    return each_plan(edit_plan)


def with_limits(**limits: Callable[[HeaderRecord], Any]) -> Corruption:
    """Claims other limits than the run had."""

    def edit(header: HeaderRecord) -> HeaderRecord:
        values = {name: value(header) for name, value in limits.items()}
        return replace(header, scheduler=replace(header.scheduler, **values))

    return each(HeaderRecord, edit)


def with_counters(**changes: int) -> Corruption:
    def edit(record: Any) -> Record | None:
        if isinstance(record, HeaderRecord | RefuseRecord):
            return None
        counters = record.counters
        values = {name: getattr(counters, name) + by for name, by in changes.items()}
        edited: Record = replace(record, counters=replace(counters, **values))
        return edited

    return each(object, edit)


def reversed_pair(items: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*items[1::-1], *items[2:])


def issue_a_held_block(history: History) -> Iterator[History]:
    """A running sequence gets a block that another scheduled one holds."""

    def edit(record: PlanRecord) -> PlanRecord | None:
        scheduled = record.plan.scheduled
        for index, entry in enumerate(scheduled):
            others = [
                block
                for seq_id, table in record.block_tables.items()
                for block in table
                if seq_id != entry.seq_id and block
            ]
            if entry.new_block_ids and others:
                changed = replace(entry, new_block_ids=(others[0], *entry.new_block_ids[1:]))
                plan = replace(
                    record.plan, scheduled=(*scheduled[:index], changed, *scheduled[index + 1 :])
                )
                return replace(record, plan=plan)
        return None

    return each(PlanRecord, edit)(history)


def write_shared_blocks(plan: StepPlan) -> StepPlan | None:
    """Leaves out copy-on-write altogether."""
    replaced = {block for entry in plan.scheduled for _, block in entry.replaced_blocks}
    if not replaced:
        return None
    return replace(
        plan,
        copies=tuple(copy for copy in plan.copies if copy.destination not in replaced),
        scheduled=tuple(replace(entry, replaced_blocks=()) for entry in plan.scheduled),
    )


def preempt_before_the_result(history: History) -> Iterator[History]:
    """The step before one that preempts was still in flight."""
    for index, record in enumerate(history[:-1]):
        later = history[index + 1]
        if (
            isinstance(record, ResultRecord)
            and isinstance(later, PlanRecord)
            and later.plan.preempted
        ):
            yield [*history[:index], later, record, *history[index + 2 :]]


def cached_to_the_end(intro: Any) -> Any:
    return replace(intro, num_cached_tokens=len(intro.token_ids))


def other_source(plan: StepPlan) -> StepPlan | None:
    """A partial hit copies another block."""
    partial = {
        block for intro in plan.introduced if intro.num_cached_tokens for block in intro.block_ids
    }
    copies = tuple(
        BlockCopy(1 if copy.source != 1 else 2, copy.destination)
        if copy.destination in partial
        else copy
        for copy in plan.copies
    )
    return replace(plan, copies=copies)


def schedule_the_aborted_again(history: History) -> Iterator[History]:
    """After an abort, the request's last entry comes once more."""
    for index, record in enumerate(history):
        if not isinstance(record, AbortRecord) or not record.found:
            continue
        before = [
            entry
            for earlier in history[:index]
            if isinstance(earlier, PlanRecord)
            for entry in earlier.plan.scheduled
            if entry.seq_id.startswith(record.request_id + "/")
        ]
        later = next(
            (i for i in range(index, len(history)) if isinstance(history[i], PlanRecord)), None
        )
        if before and later is not None:
            plan_record = history[later]
            assert isinstance(plan_record, PlanRecord)
            plan = replace(plan_record.plan, scheduled=(*plan_record.plan.scheduled, before[-1]))
            yield [*history[:later], replace(plan_record, plan=plan), *history[later + 1 :]]


def salt_the_hitting_request(history: History) -> Iterator[History]:
    """The request that hits had a salt of its own: its hits were another's secrets."""
    hitting = {
        intro.request_id
        for record in history
        if isinstance(record, PlanRecord)
        for intro in record.plan.introduced
        # One that returns may hit its own blocks, and these are under its salt.
        if intro.num_cached_tokens
        and intro.request_id in {request.request_id for request in record.plan.new_requests}
    }
    for request_id in sorted(hitting):

        def edit(record: SubmitRecord, name: str = request_id) -> SubmitRecord | None:
            if record.request.request_id != name:
                return None
            return replace(record, request=replace(record.request, cache_salt="own"))

        yield from each(SubmitRecord, edit)(history)


def arrive_last(history: History) -> Iterator[History]:
    """The first request admitted while others wait had arrived after them."""
    for record in history:
        if not isinstance(record, PlanRecord):
            continue
        for request in record.plan.new_requests:
            if record.counters.num_waiting:

                def edit(one: SubmitRecord, name: str = request.request_id) -> SubmitRecord | None:
                    if one.request.request_id != name:
                        return None
                    return replace(one, request=replace(one.request, arrival_s=99.0, priority=99))

                yield from each(SubmitRecord, edit)(history)
                return


def begin_like_the_one_before(history: History) -> Iterator[History]:
    """Of two requests that one step begins, the second has the prompt of the first."""
    header = history[0]
    assert isinstance(header, HeaderRecord)
    if not (header.scheduler.wait_for_prefix and header.cache.enable_prefix_caching):
        return
    for record in history:
        new = record.plan.new_requests if isinstance(record, PlanRecord) else ()
        for first, second in pairwise(new):
            prompt = first.prompt_token_ids[: second.num_prompt_tokens]
            if len(prompt) == second.num_prompt_tokens > header.cache.block_size:
                yield [with_prompt(one, second.request_id, prompt) for one in history]


def with_prompt(record: Record, request_id: str, prompt: tuple[int, ...]) -> Record:
    if isinstance(record, SubmitRecord) and record.request.request_id == request_id:
        return replace(record, request=replace(record.request, prompt_token_ids=prompt))
    if isinstance(record, PlanRecord):
        introduced = tuple(
            replace(one, token_ids=(*prompt, *one.token_ids[len(prompt) :]))
            if one.request_id == request_id
            else one
            for one in record.plan.introduced
        )
        return replace(record, plan=replace(record.plan, introduced=introduced))
    return record


def budget_below_the_largest_step(history: History) -> Iterator[History]:
    largest = max(
        record.plan.num_scheduled_tokens for record in history if isinstance(record, PlanRecord)
    )
    if largest > 1:
        yield from with_limits(
            max_num_batched_tokens=lambda _: largest - 1,
            max_num_seqs=lambda header: min(largest - 1, header.scheduler.max_num_seqs),
            enable_chunked_prefill=lambda _: True,
        )(history)


def lose_a_block_at_the_end(history: History) -> Iterator[History]:
    for last in with_counters(num_free_blocks=-1)(history[-1:]):
        yield [*history[:-1], *last]


CORRUPTIONS: dict[str, tuple[str, Corruption]] = {
    "a request that can run is refused": (
        "sched.admission-feasible",
        each(SubmitRecord, lambda one: RefuseRecord(request=one.request, error="no room")),
    ),
    "a copy is lost": ("cow.copies", each_plan(lambda plan: replace(plan, copies=plan.copies[1:]))),
    "a lost copy is read": ("cow.isolation", each_plan(lambda plan: replace(plan, copies=()))),
    "shared blocks are written": ("kv.exclusive-write", each_plan(write_shared_blocks)),
    "a held block is issued": ("kv.takes-free", issue_a_held_block),
    "the null block is issued": (
        "kv.null-block",
        each_entry(new_block_ids=lambda blocks: (0,) * len(blocks)),
    ),
    "a block is not issued": (
        "kv.table-covers",
        each_entry(new_block_ids=lambda blocks: blocks[1:]),
    ),
    "two table entries are exchanged": (
        "kv.tables-recorded",
        each_introduction(lambda i: replace(i, block_ids=reversed_pair(i.block_ids))),
    ),
    "a free block is missing from the books": (
        "kv.conservation",
        with_counters(num_free_blocks=-1),
    ),
    "a block is lost at the end": ("kv.no-leak", lose_a_block_at_the_end),
    "a group forgets to fork": (
        "cow.fork-once",
        each(ResultRecord, lambda r: replace(r, forked=r.forked[1:])),
    ),
    "a secret is shared": ("cache.hit-implies-equal", salt_the_hitting_request),
    "a hit is shorter than it could be": (
        "cache.equal-implies-hit",
        each_introduction(lambda i: replace(i, num_cached_tokens=0)),
    ),
    "a partial hit copies another block": ("cache.partial-hit", each_plan(other_source)),
    "a cached block is forgotten": ("cache.accounting", with_counters(num_cached_blocks=-1)),
    "a prompt is cached to its end": (
        "cache.last-token-recompute",
        each_introduction(cached_to_the_end),
    ),
    "a reset lies": ("cache.reset", each(ResetRecord, lambda r: replace(r, done=not r.done))),
    "a victim's row is kept": (
        "preempt.clean",
        each_plan(lambda p: replace(p, dropped=()) if p.preempted else None),
    ),
    "a returning sequence lost its last token": (
        "preempt.resume-complete",
        each_introduction(lambda i: replace(i, token_ids=i.token_ids[:-1])),
    ),
    "a block is not swapped out": (
        "swap.round-trip",
        each_plan(lambda plan: replace(plan, swap_outs=plan.swap_outs[:-1])),
    ),
    "blocks are swapped in crosswise": (
        "swap.round-trip",
        each_plan(
            lambda plan: replace(
                plan,
                swap_ins=tuple(
                    BlockCopy(source, copy.destination)
                    for source, copy in zip(
                        reversed_pair(tuple(c.source for c in plan.swap_ins)),
                        plan.swap_ins,
                        strict=True,
                    )
                ),
            )
        ),
    ),
    "the wrong one is preempted": (
        "preempt.victim",
        each_plan(lambda plan: replace(plan, preempted=plan.preempted[::-1])),
    ),
    "a step preempts while another is in flight": ("preempt.justified", preempt_before_the_result),
    "a forced preemption passes somebody by": (
        "preempt.forced",
        each_plan(lambda plan: replace(plan, preempted=plan.preempted[1:])),
    ),
    "a forced preemption misses what runs": (
        "history.readable",
        each(PreemptRecord, lambda r: replace(r, found=not r.found)),
    ),
    "a step is above the budget": ("sched.budget", budget_below_the_largest_step),
    "a running sequence is not counted": ("sched.counters", with_counters(num_running=1)),
    "a position is left out": ("sched.contiguous", each_entry(num_computed_tokens=lambda c: c + 1)),
    "a token is not asked for": (
        "sched.samples-at-end",
        each_entry(samples=lambda samples: not samples),
    ),
    "sampled tokens are missing": (
        "sched.samples-at-end",
        each(
            ResultRecord,
            lambda r: (
                replace(r, sampled={}) if any(f.seq_id in r.sampled for f in r.finished) else None
            ),
        ),
    ),
    "a sequence ends for another reason": (
        "life.stops",
        each(
            ResultRecord,
            lambda r: replace(r, finished=tuple(replace(f, reason="error") for f in r.finished)),
        ),
    ),
    "a plan is empty": (
        "sched.progress",
        each_plan(
            lambda p: None if p.preempted else replace(p, scheduled=(), introduced=(), copies=())
        ),
    ),
    "an aborted sequence is scheduled": ("life.no-work-after-end", schedule_the_aborted_again),
    "a step overtakes in a synchronous run": (
        "sched.one-in-flight",
        with_limits(async_scheduling=lambda header: False),
    ),
    "a plan is out of order": (
        "sched.once-per-step",
        each_plan(lambda plan: replace(plan, scheduled=plan.scheduled[::-1])),
    ),
    "a late request goes first": ("sched.order", arrive_last),
    "who waits for no prefix is overtaken": (
        "sched.order",
        with_limits(wait_for_prefix=lambda header: False),
    ),
    "one who shares a prefix does not wait": ("sched.waits-for-prefix", begin_like_the_one_before),
    "an abort misses a live request": (
        "history.readable",
        each(AbortRecord, lambda r: replace(r, found=not r.found)),
    ),
}


def test_good_histories_show_no_violation(histories: list[History]) -> None:
    assert len(histories) > 3
    for history in histories:
        assert check_all(history) == []


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_history_is_noticed_wherever_it_is_corrupted(
    name: str, histories: list[History]
) -> None:
    property_id, corrupt = CORRUPTIONS[name]
    applied = 0
    named = 0
    for history in histories:
        for corrupted in islice(corrupt(history), PLACES):
            applied += 1
            found = check_all(corrupted)
            assert found, f"application {applied} went unnoticed"
            named += property_id in {one.property_id for one in found}
    assert named > 0, f"{property_id} noticed none of {applied} corruptions"


def test_every_property_of_the_catalogue_has_a_corruption_that_breaks_it() -> None:
    assert {property_id for property_id, _ in CORRUPTIONS.values()} == set(JUDGED)
