"""The block map: its levels are the engine's own, and its spans cover each block once."""

from collections.abc import Callable
from typing import Any

import pytest

from pagetwin.conformance.demo.account import request_rows, step_points
from pagetwin.conformance.demo.block_map import block_spans, pool_states
from pagetwin.conformance.demo.workload import CACHE
from pagetwin.conformance.history import steps
from pagetwin.engine.trace import PlanRecord


@pytest.mark.parametrize("seed", range(3))
def test_held_blocks_are_those_that_the_engine_counts(
    seed: int, make_run: Callable[..., Any]
) -> None:
    run = make_run(32, seed)
    states = dict(pool_states(run.records))
    plans = [record for record in run.records if isinstance(record, PlanRecord)]
    assert set(states) == {record.plan.step for record in plans}
    for record in plans:
        blocks = states[record.plan.step]
        held = sum(state == "held" for state, _ in blocks.values())
        # The source of a partial hit is kept from being taken until its copy has run.
        num_pinned = len(record.plan.copies)
        free = record.counters.num_free_blocks
        assert CACHE.num_blocks - 1 - held - num_pinned <= free <= CACHE.num_blocks - 1 - held
        for seq_id, table in record.block_tables.items():
            for block_id in table:
                state, owners = blocks[block_id]
                assert state == "held"
                assert seq_id in owners


def test_spans_of_a_block_do_not_overlap_and_say_what_the_steps_say(
    make_run: Callable[..., Any],
) -> None:
    states = dict(pool_states(make_run(32, 0).records))
    spans = block_spans(states.items())
    drawn = {}
    for span in spans:
        assert 0 < span.block_id < CACHE.num_blocks
        for step in range(span.first_step, span.end_step):
            assert (span.block_id, step) not in drawn
            drawn[span.block_id, step] = (span.state, span.owners)
    assert drawn == {
        (block_id, step): state
        for step, blocks in states.items()
        for block_id, state in blocks.items()
    }
    assert {span.state for span in spans} == {"held", "cached"}
    assert any(len(span.owners) > 1 for span in spans)


def test_the_points_add_up_to_the_pool_and_to_the_counters(make_run: Callable[..., Any]) -> None:
    run = make_run(32, 1)
    recorded = steps(run.records)
    points = step_points(recorded, dict(pool_states(run.records)), CACHE.num_blocks)
    for point in points:
        levels = point.held_blocks + point.cached_free_blocks + point.free_blocks
        assert levels == CACHE.num_blocks - 1
    last = recorded[-1].plan.counters
    for name in ("evictions", "cow_copies", "preemptions_swap", "prefix_hit_tokens"):
        assert sum(getattr(point, name) for point in points) == getattr(last, name)
    tokens = sum(point.prompt_tokens + point.decode_tokens for point in points)
    assert tokens == sum(step.plan.plan.num_scheduled_tokens for step in recorded)


def test_a_request_row_tells_its_whole_life(make_run: Callable[..., Any]) -> None:
    run = make_run(32, 0)
    rows = request_rows(run.workload, steps(run.records), run.outputs)
    assert [row.request_id for row in rows] == [c.request.request_id for c in run.workload]
    hung_up = [row for row in rows if row.finish == "abort"]
    assert [row.first_scheduled_step is None for row in hung_up] == [True, False]
    assert sum(row.preemptions for row in rows) > 0
    assert sum(row.num_cached_tokens for row in rows) > 0
    for row in rows:
        if row.first_scheduled_step is not None and row.ended_step is not None:
            assert row.first_scheduled_step <= row.ended_step
