"""docs/policy.md P2.4e on the engine: a request whose next block is being computed waits for it."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from pagetwin.engine.core import EngineCore
from pagetwin.engine.request import Request
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import StepPlan, StepResult

MakeCore = Callable[..., EngineCore]
MakeRequest = Callable[..., Request]

PREFIX = list(range(100, 116))
"""Four blocks of four tokens."""


@pytest.fixture
def make_waiting(make_core: MakeCore) -> Callable[..., Scheduler]:
    """A scheduler that waits for prefixes, with blocks and places for everybody."""

    def make(**knobs: Any) -> Scheduler:
        roomy = {"num_blocks": 100, "max_num_batched_tokens": 64, "wait_for_prefix": True}
        return make_core(**(roomy | knobs)).scheduler

    return make


MakeWaiting = Callable[..., Scheduler]


def next_plan(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    return plan


def close(scheduler: Scheduler, plan: StepPlan) -> None:
    sampled = {entry.seq_id: 7 for entry in plan.scheduled if entry.samples}
    scheduler.update(plan, StepResult(step=plan.step, sampled=sampled))


def shares(plan: StepPlan) -> dict[str, tuple[int, int]]:
    """First position and number of tokens, by request."""
    return {
        entry.seq_id.removesuffix("/0"): (entry.num_computed_tokens, entry.num_scheduled_tokens)
        for entry in plan.scheduled
    }


@pytest.mark.parametrize("num_sharing", [2, 9, 40])
def test_a_common_prefix_is_computed_once(
    make_waiting: MakeWaiting, make_request: MakeRequest, num_sharing: int
) -> None:
    prefilled = {}
    for waits in (False, True):
        scheduler = make_waiting(
            num_blocks=400, max_num_seqs=64, max_num_batched_tokens=2048, wait_for_prefix=waits
        )
        for index in range(num_sharing):
            tail = [200 + index, 0, 1]
            scheduler.add_request(make_request(f"{index:02}", [*PREFIX, *tail], max_tokens=1))
        prefilled[waits] = 0
        while scheduler.has_unfinished_requests():
            plan = next_plan(scheduler)
            prefilled[waits] += plan.num_scheduled_tokens
            close(scheduler, plan)
    assert prefilled == {
        False: num_sharing * (len(PREFIX) + 3),
        True: len(PREFIX) + num_sharing * 3,
    }


def test_those_behind_are_admitted_meanwhile(
    make_waiting: MakeWaiting, make_request: MakeRequest
) -> None:
    scheduler = make_waiting()
    scheduler.add_request(make_request("a", [*PREFIX, 1]))
    scheduler.add_request(make_request("b", [*PREFIX, 2]))
    scheduler.add_request(make_request("c", [9] * 10))
    scheduler.add_request(make_request("d", [*PREFIX, 3]))
    first = next_plan(scheduler)
    assert shares(first) == {"a": (0, 17), "c": (0, 10)}
    assert scheduler.counters().num_waiting == 2
    assert scheduler.counters().prefix_queries == 27
    close(scheduler, first)
    second = next_plan(scheduler)
    assert shares(second) == {"a": (17, 1), "c": (10, 1), "b": (16, 1), "d": (16, 1)}
    assert scheduler.counters().prefix_hit_tokens == 2 * len(PREFIX)


def test_a_prefix_in_chunks_is_awaited_chunk_by_chunk(
    make_waiting: MakeWaiting, make_request: MakeRequest
) -> None:
    scheduler = make_waiting(long_prefill_token_threshold=8)
    scheduler.add_request(make_request("a", [*PREFIX, 1]))
    scheduler.add_request(make_request("b", [*PREFIX, 2]))
    scheduler.add_request(make_request("c", [*PREFIX[:9], 3]))
    assert [shares_of_next(scheduler) for _ in range(3)] == [
        {"a": (0, 8)},
        # Nobody computes what c could hit behind the first chunk: its third block is no whole one.
        {"a": (8, 8), "c": (8, 2)},
        {"a": (16, 1), "c": (10, 1), "b": (16, 1)},
    ]


def shares_of_next(scheduler: Scheduler) -> dict[str, tuple[int, int]]:
    plan = next_plan(scheduler)
    close(scheduler, plan)
    return shares(plan)


def test_the_last_token_is_never_awaited(
    make_waiting: MakeWaiting, make_request: MakeRequest
) -> None:
    scheduler = make_waiting()
    scheduler.add_request(make_request("a", PREFIX[:4]))
    scheduler.add_request(make_request("b", PREFIX[:4]))
    assert shares(next_plan(scheduler)) == {"a": (0, 4), "b": (0, 4)}


@pytest.mark.parametrize("knob", ["cache_salt", "adapter_id"])
def test_what_could_not_be_hit_is_not_awaited(
    make_waiting: MakeWaiting, make_request: MakeRequest, knob: str
) -> None:
    scheduler = make_waiting()
    scheduler.add_request(make_request("a", PREFIX))
    scheduler.add_request(make_request("b", PREFIX, **{knob: "mine"}))
    scheduler.add_request(make_request("c", PREFIX, prompt_logprobs=1))
    assert shares(next_plan(scheduler)) == {"a": (0, 16), "b": (0, 16), "c": (0, 16)}


def test_without_prefix_caching_nobody_waits(
    make_waiting: MakeWaiting, make_request: MakeRequest
) -> None:
    scheduler = make_waiting(enable_prefix_caching=False)
    scheduler.add_request(make_request("a", PREFIX))
    scheduler.add_request(make_request("b", PREFIX))
    assert shares(next_plan(scheduler)) == {"a": (0, 16), "b": (0, 16)}


def test_a_group_that_has_no_place_does_not_block_the_line_while_it_waits(
    make_waiting: MakeWaiting, make_request: MakeRequest
) -> None:
    scheduler = make_waiting(max_num_seqs=3)
    scheduler.add_request(make_request("a", PREFIX))
    scheduler.add_request(make_request("b", PREFIX, n=3))
    scheduler.add_request(make_request("c", [5] * 6))
    assert shares_of_next(scheduler) == {"a": (0, 16), "c": (0, 6)}
    # From here on it is only too many, and a head of the line.
    scheduler.add_request(make_request("d", [6] * 6))
    assert shares_of_next(scheduler) == {"a": (16, 1), "c": (6, 1)}


def test_a_hit_that_an_admission_evicts_is_no_reason_to_wait(
    make_waiting: MakeWaiting, make_request: MakeRequest
) -> None:
    scheduler = make_waiting(num_blocks=7, long_prefill_token_threshold=4)
    # Without look-ups a and b compute the first block each; that of a is the cached one.
    scheduler.add_request(make_request("a", [*PREFIX[:4], 0], max_tokens=1, prompt_logprobs=1))
    scheduler.add_request(make_request("b", [*PREFIX, 0], prompt_logprobs=1))
    scheduler.add_request(make_request("c", [9] * 5, max_tokens=1))
    assert shares_of_next(scheduler) == {"a": (0, 4), "b": (0, 4), "c": (0, 4)}
    assert shares_of_next(scheduler) == {"a": (4, 1), "b": (4, 4), "c": (4, 1)}
    scheduler.add_request(make_request("d", [*PREFIX, 1]))
    scheduler.add_request(make_request("e", [8] * 5))
    scheduler.add_request(make_request("f", [*PREFIX, 2]))
    # d hits two blocks and waits for the third; e takes the first of them, so f begins anew.
    assert shares_of_next(scheduler) == {"b": (8, 4), "e": (0, 4), "f": (0, 4)}
    assert scheduler.counters().evictions > 0
    assert scheduler.counters().prefix_hit_tokens == 0


def test_blocks_of_the_step_in_flight_are_awaited(
    make_waiting: MakeWaiting, make_request: MakeRequest
) -> None:
    scheduler = make_waiting(async_scheduling=True)
    scheduler.add_request(make_request("a", [*PREFIX, 1]))
    first = next_plan(scheduler)
    scheduler.add_request(make_request("b", [*PREFIX, 2]))
    second = next_plan(scheduler)
    assert shares(second) == {"a": (17, 1)}
    close(scheduler, first)
    assert shares(next_plan(scheduler)) == {"a": (18, 1), "b": (16, 1)}


def test_what_has_ended_in_flight_is_awaited_no_more(
    make_waiting: MakeWaiting, make_request: MakeRequest
) -> None:
    scheduler = make_waiting(async_scheduling=True)
    scheduler.add_request(make_request("a", [*PREFIX, 1]))
    next_plan(scheduler)
    scheduler.add_request(make_request("b", [*PREFIX, 2]))
    scheduler.add_request(make_request("c", [*PREFIX, 3]))
    scheduler.abort_request("a")
    assert shares(next_plan(scheduler)) == {"b": (0, 17)}


def test_a_block_with_a_token_that_nobody_knows_yet_is_not_awaited(
    make_waiting: MakeWaiting, make_request: MakeRequest
) -> None:
    scheduler = make_waiting(async_scheduling=True)
    scheduler.add_request(make_request("a", [1, 2, 3], ignore_eos=True))
    first = next_plan(scheduler)
    # Its fourth token will be 7, and is computed by this plan; who asks for it cannot know.
    scheduler.add_request(make_request("b", [1, 2, 3, 7, 8]))
    second = next_plan(scheduler)
    assert shares(second) == {"a": (3, 1), "b": (0, 5)}
    close(scheduler, first)
    # In the step in flight the token is known by now.
    scheduler.add_request(make_request("c", [1, 2, 3, 7, 9]))
    assert shares(next_plan(scheduler)) == {"a": (4, 1), "b": (5, 1)}


def test_tokens_do_not_depend_on_waiting(make_core: MakeCore, make_request: MakeRequest) -> None:
    """Random requests with common beginnings, on pools that preempt, synchronous or not."""
    overtakings = 0
    for seed in range(60):
        draw = random.Random(seed)
        knobs = {
            "num_blocks": draw.choice((16, 40)),
            "max_num_batched_tokens": draw.choice((8, 24, 64)),
            "async_scheduling": draw.random() < 0.5,
            "preemption_mode": draw.choice(("recompute", "swap")),
            "num_host_blocks": 12,
        }
        prefix = [draw.randrange(5) for _ in range(draw.choice((8, 16)))]
        requests = [
            make_request(f"{index}", [*prefix[: draw.choice((0, 9, 16))], 0, *tail], n=samples)
            for index, tail, samples in (
                (index, [draw.randrange(5)] * draw.randint(0, 9), draw.choice((1, 1, 2)))
                for index in range(8)
            )
        ]
        outputs = []
        for waits in (False, True):
            core = make_core(**knobs, wait_for_prefix=waits)
            tokens, overtaken = tokens_by_sequence(core, requests)
            outputs.append(tokens)
            overtakings += overtaken
            assert waits or not overtaken
        assert outputs[0] == outputs[1]
    assert overtakings > 30


def tokens_by_sequence(
    core: EngineCore, requests: list[Request]
) -> tuple[dict[str, list[int]], int]:
    """What each sequence got, and how often one started before another that came earlier."""
    tokens: dict[str, list[int]] = {}
    started: list[str] = []
    for request in requests:
        core.add_request(request)
    while (done := core.step()) is not None:
        started += [request.request_id for request in done.plan.new_requests]
        for seq_id, token in done.result.sampled.items():
            tokens.setdefault(seq_id, []).append(token)
    return tokens, sum(one > other for one, other in pairwise(started))
