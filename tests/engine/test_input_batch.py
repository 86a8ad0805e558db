"""The persistent batch against a rebuild from full knowledge, over streams of real plans."""

import random
from collections import deque
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import RequestError
from pagetwin.engine.input_batch import InputBatch
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import (
    BeamSelection,
    IntroducedSequence,
    Preemption,
    ScheduledSequence,
    StepPlan,
    StepResult,
)
from pagetwin.engine.step_inputs import StepInputs, build_inputs_from_scratch

EOS = 3
CACHE = CacheConfig(num_blocks=14, block_size=4, num_host_blocks=8, watermark_blocks=1)
SCHEDULER = SchedulerConfig(max_model_len=32, max_num_seqs=6, max_num_batched_tokens=16)
MODES: dict[str, tuple[CacheConfig, SchedulerConfig]] = {
    "recompute": (CACHE, SCHEDULER),
    "swap": (CACHE, msgspec.structs.replace(SCHEDULER, preemption_mode="swap")),
    "priority": (
        CACHE,
        msgspec.structs.replace(SCHEDULER, policy="priority", long_prefill_token_threshold=5),
    ),
    "async": (CACHE, msgspec.structs.replace(SCHEDULER, async_scheduling=True)),
    "async swap with lookahead": (
        CACHE,
        msgspec.structs.replace(
            SCHEDULER, async_scheduling=True, preemption_mode="swap", num_lookahead_slots=3
        ),
    ),
    "whole prompts": (
        CACHE,
        msgspec.structs.replace(SCHEDULER, enable_chunked_prefill=False, max_num_batched_tokens=32),
    ),
    "sliding window": (msgspec.structs.replace(CACHE, sliding_window=6, num_blocks=11), SCHEDULER),
}


def assert_same(inputs: StepInputs, expected: StepInputs) -> None:
    for field in fields(StepInputs):
        got, want = getattr(inputs, field.name), getattr(expected, field.name)
        assert got.dtype == want.dtype, field.name
        np.testing.assert_array_equal(got, want, err_msg=field.name)


class Stream:
    """A scheduler and an InputBatch, fed with random requests, tokens, beams and aborts.

    It knows every token itself, and every block table from the scheduler.
    """

    def __init__(self, cache: CacheConfig, config: SchedulerConfig, rng: random.Random) -> None:
        self.scheduler = Scheduler(cache, config)
        self.batch = InputBatch(cache, config)
        self.num_steps = self.num_forks = self.num_selections = self.num_mixed_steps = 0
        self._cache, self._config, self._rng = cache, config, rng
        self._tokens: dict[str, list[int]] = {}
        self._requests: dict[str, Request] = {}
        self._computed: dict[str, int] = {}
        self._beams: dict[str, list[str]] = {}
        self._in_flight: deque[tuple[StepPlan, StepResult]] = deque()

    def submit(self, request: Request) -> None:
        try:
            self.scheduler.add_request(request)
        except RequestError:
            return
        name = f"{request.request_id}/0"
        self._requests[request.request_id] = request
        self._tokens[name] = list(request.prompt_token_ids)
        if request.beam_search is not None:
            self._beams[request.request_id] = [name]

    def submit_random(self, number: int) -> None:
        rng = self._rng
        num_prompt = rng.randint(1, self._config.max_model_len - 1)
        start = rng.randint(0, 2)
        # A few families of prompts, so that prefixes are found in the cache.
        prompt = [(start + i * i // 7) % 3 for i in range(num_prompt)]
        if rng.random() < 0.5:
            prompt[rng.randrange(num_prompt)] = rng.randint(0, 2)
        width = rng.choice([2, 3])
        request = Request(
            request_id=f"r{number}",
            prompt_token_ids=tuple(prompt),
            sampling_params=SamplingParams(
                n=rng.choice([1, 1, 1, 2, 3]), max_tokens=rng.randint(1, 12)
            ),
            eos_token_ids=(EOS,),
            arrival_s=float(number),
            priority=rng.randint(0, 2),
        )
        if rng.random() < 0.15:
            request = msgspec.structs.replace(
                request,
                sampling_params=SamplingParams(max_tokens=rng.randint(1, 5)),
                beam_search=BeamSearchParams(beam_width=width),
            )
        self.submit(request)

    def abort_one(self) -> None:
        if self._requests:
            self.scheduler.abort_request(self._rng.choice(list(self._requests)[-4:]))

    def step(self) -> bool:
        """One turn of the engine's loop; False if there was nothing to do."""
        started = self._start()
        if started and self._config.async_scheduling and len(self._in_flight) == 1:
            self._start()
        if not self._in_flight:
            return False
        plan, result = self._in_flight.popleft()
        result = msgspec.structs.replace(result, selections=self._select(plan))
        self.scheduler.update(plan, result)
        self.scheduler.check_invariants()
        return True

    def _start(self) -> bool:
        plan = self.scheduler.schedule()
        if plan is None:
            return False
        tables = {s.seq_id: self.scheduler.block_table(s.seq_id) for s in plan.scheduled}
        self.batch.apply(plan)
        self.batch.check_invariants()
        inputs = self.batch.build_inputs(plan.scheduled)
        rows = {
            seq_id: row for seq_id in tables if (row := self.batch.find_row(seq_id)) is not None
        }
        expected = build_inputs_from_scratch(
            plan.scheduled, rows, self._tokens, tables, self._cache.block_size
        )
        assert_same(inputs, expected)
        self.num_steps += 1
        self.num_mixed_steps += len({s.num_scheduled_tokens for s in plan.scheduled}) > 1
        for preemption in plan.preempted:
            self._computed[preemption.seq_id] = 0
        for s in plan.scheduled:
            self._computed[s.seq_id] = s.num_computed_tokens + s.num_scheduled_tokens
        self._in_flight.append((plan, self._sample(plan)))
        self._compare_contents(plan)
        return True

    def _sample(self, plan: StepPlan) -> StepResult:
        sampled: dict[str, int] = {}
        for s in plan.scheduled:
            if not s.samples:
                continue
            rows = self.batch.sampling_rows(s.seq_id)
            request = rows[0].request
            tokens = self._tokens[s.seq_id]
            num_prompt = request.num_prompt_tokens
            assert list(rows[0].output_token_ids) == tokens[num_prompt:]
            names = [s.seq_id]
            if request.beam_search is None and len(tokens) == num_prompt:
                names = [f"{request.request_id}/{i}" for i in range(request.num_samples)]
                self.num_forks += len(names) > 1
            assert [row.seq_id for row in rows] == names
            if request.beam_search is None:
                drawn = {name: self._rng.choice([0, 0, 1, 1, 2, 2, EOS]) for name in names}
                parent = list(tokens)
                self._tokens |= {name: [*parent, token] for name, token in drawn.items()}
                sampled |= drawn
                self.batch.append_tokens(rows, drawn)
        self.batch.check_invariants()
        return StepResult(step=plan.step, sampled=sampled)

    def _select(self, plan: StepPlan) -> tuple[BeamSelection, ...]:
        """Random next beams for each search whose beams have all been computed."""
        scheduled = {s.seq_id.partition("/")[0] for s in plan.scheduled}
        selections = []
        for request_id in sorted(scheduled & self._beams.keys()):
            beams, request = self._beams[request_id], self._requests[request_id]
            assert request.beam_search is not None
            if any(self._computed.get(b, 0) < len(self._tokens[b]) for b in beams):
                continue
            self.num_selections += 1
            num_output = len(self._tokens[beams[0]]) - request.num_prompt_tokens
            if num_output == request.sampling_params.max_tokens or self._rng.random() < 0.1:
                selections.append(BeamSelection(request_id=request_id, finished=True))
                continue
            width = request.beam_search.beam_width
            parents = [self._rng.randrange(len(beams)) for _ in range(width)]
            tokens = [self._rng.randint(0, 2) for _ in range(width)]
            old = [(list(self._tokens[b]), self._computed[b]) for b in beams]
            names = [f"{request_id}/{i}" for i in range(width)]
            for name, parent, token in zip(names, parents, tokens, strict=True):
                self._tokens[name] = [*old[parent][0], token]
                self._computed[name] = old[parent][1]
            self._beams[request_id] = names
            selections.append(
                BeamSelection(
                    request_id=request_id, parents=tuple(parents), token_ids=tuple(tokens)
                )
            )
        return tuple(selections)

    def _compare_contents(self, plan: StepPlan) -> None:
        """Rows hold what is known; those of beams do once the selected ones are introduced."""
        scheduled = {s.seq_id for s in plan.scheduled}
        for seq_id, (tokens, table) in self.batch.contents().items():
            if seq_id.partition("/")[0] in self._beams and seq_id not in scheduled:
                continue
            assert list(tokens) == self._tokens[seq_id]
            # Empty for a sequence that has ended; 0 where the window has passed.
            known = self.scheduler.block_table(seq_id) or table
            assert all(k in (0, own) for own, k in zip(table, known, strict=True))


def run(stream: Stream, *, num_requests: int, rng: random.Random) -> None:
    submitted = 0
    while submitted < num_requests or stream.scheduler.has_unfinished_requests():
        if submitted < num_requests and rng.random() < 0.3:
            stream.submit_random(submitted)
            submitted += 1
        if rng.random() < 0.1:
            stream.abort_one()
        stream.step()
    assert not stream.step()


@pytest.mark.parametrize("mode", MODES)
def test_the_persistent_batch_equals_a_rebuild_over_a_long_random_stream(mode: str) -> None:
    rng = random.Random(f"long stream, {mode}")
    stream = Stream(*MODES[mode], rng)
    run(stream, num_requests=200, rng=rng)
    counters = stream.scheduler.counters()
    assert stream.num_steps >= 400
    assert stream.num_mixed_steps > 50
    assert min(stream.num_forks, stream.num_selections, counters.finished, counters.aborts) > 5
    assert counters.preemptions_recompute > 0
    assert counters.cow_copies > 0
    assert counters.prefix_hit_tokens > 0
    assert counters.partial_hits > 0
    if MODES[mode][1].preemption_mode == "swap":
        assert counters.preemptions_swap > 0


@settings(max_examples=60, deadline=None)
@given(
    rng=st.randoms(use_true_random=False),
    mode=st.sampled_from(sorted(MODES)),
    num_requests=st.integers(1, 8),
)
def test_the_persistent_batch_equals_a_rebuild(
    rng: random.Random, mode: str, num_requests: int
) -> None:
    stream = Stream(*MODES[mode], rng)
    run(stream, num_requests=num_requests, rng=rng)
    # Where all requests are refused or aborted before a step, nothing was compared.
    assume(stream.num_steps > 0)
    assert not stream.scheduler.has_unfinished_requests()


def make_request(name: str, prompt: tuple[int, ...], **params: Any) -> Request:
    return Request(
        request_id=name, prompt_token_ids=prompt, sampling_params=SamplingParams(**params)
    )


def introduce(
    asked: Request, block_ids: tuple[int, ...], outputs: tuple[int, ...] = (), sample: int = 0
) -> IntroducedSequence:
    return IntroducedSequence(
        seq_id=f"{asked.request_id}/{sample}",
        request_id=asked.request_id,
        sample_index=sample,
        token_ids=asked.prompt_token_ids + outputs,
        block_ids=block_ids,
    )


def new_batch() -> InputBatch:
    return InputBatch(CACHE, SCHEDULER)


def test_the_inputs_of_a_chunk_a_decode_and_a_replaced_block_are_as_written_here() -> None:
    a, b = make_request("a", (10, 11, 12, 13, 14, 15)), make_request("b", (20, 21, 22))
    batch = new_batch()
    first = StepPlan(
        step=0,
        new_requests=(a, b),
        introduced=(introduce(a, (7,)), introduce(b, (3,))),
        scheduled=(ScheduledSequence("a/0", 0, 4), ScheduledSequence("b/0", 0, 3, samples=True)),
    )
    batch.apply(first)
    batch.append_tokens(batch.sampling_rows("b/0"), {"b/0": 23})
    batch.apply(
        StepPlan(
            step=1,
            scheduled=(
                ScheduledSequence("b/0", 3, 1, (9,), ((0, 5),), samples=True),
                ScheduledSequence("a/0", 4, 2, (2,), samples=True),
            ),
        )
    )
    inputs = batch.build_inputs(
        (ScheduledSequence("b/0", 3, 1), ScheduledSequence("a/0", 4, 2, (2,)))
    )
    assert inputs.input_ids.tolist() == [23, 14, 15]
    assert inputs.positions.tolist() == [3, 4, 5]
    assert inputs.slot_mapping.tolist() == [5 * 4 + 3, 2 * 4, 2 * 4 + 1]
    assert inputs.query_start_loc.tolist() == [0, 1, 3]
    assert inputs.seq_lens.tolist() == [4, 6]
    assert batch.block_tables[inputs.rows, :2].tolist() == [[5, 9], [7, 2]]
    assert (inputs.max_query_len, inputs.max_seq_len) == (2, 6)


def test_a_step_without_sequences_has_empty_inputs() -> None:
    batch = new_batch()
    batch.apply(StepPlan(step=0))
    inputs = batch.build_inputs(())
    assert_same(inputs, build_inputs_from_scratch((), {}, {}, {}, CACHE.block_size))
    assert (inputs.max_query_len, inputs.max_seq_len) == (0, 0)


def test_a_vacated_row_holds_zeros_and_is_used_again() -> None:
    batch = new_batch()
    many = [make_request(f"r{i}", (1, 2, 3)) for i in range(SCHEDULER.max_num_seqs)]
    batch.apply(
        StepPlan(
            step=0,
            new_requests=tuple(many),
            introduced=tuple(introduce(r, (i + 1,), (4,)) for i, r in enumerate(many)),
        )
    )
    last = make_request("last", (8,))
    batch.apply(
        StepPlan(
            step=1, dropped=("r2/0",), new_requests=(last,), introduced=(introduce(last, (9,)),)
        )
    )
    batch.check_invariants()
    assert batch.contents()["last/0"] == ((8,), (9,))
    batch.apply(StepPlan(step=2, dropped=("last/0", *(f"r{i}/0" for i in (0, 1, 3, 4, 5)))))
    batch.check_invariants()
    assert batch.contents() == {}


def test_a_group_is_one_row_until_its_samples_are_introduced() -> None:
    group = make_request("g", (1, 2), n=3)
    batch = new_batch()
    plan = StepPlan(step=0, new_requests=(group,), introduced=(introduce(group, (4,)),))
    batch.apply(plan)
    rows = batch.sampling_rows("g/0")
    assert [(row.seq_id, row.sample_index) for row in rows] == [("g/0", 0), ("g/1", 1), ("g/2", 2)]
    batch.append_tokens(rows, {"g/0": 5, "g/1": 6, "g/2": 7})
    assert batch.contents() == {"g/0": ((1, 2, 5), (4,))}
    batch.apply(
        StepPlan(
            step=1,
            dropped=("g/0",),
            introduced=(introduce(group, (4,), (6,), 1), introduce(group, (4,), (7,), 2)),
        )
    )
    assert [row.seq_id for row in batch.sampling_rows("g/1")] == ["g/1"]
    assert batch.contents() == {"g/1": ((1, 2, 6), (4,)), "g/2": ((1, 2, 7), (4,))}
    batch.check_invariants()


def test_a_request_is_remembered_while_a_sequence_of_it_may_come_back() -> None:
    group = make_request("g", (1, 2), n=2)
    batch = new_batch()
    batch.apply(StepPlan(step=0, new_requests=(group,), introduced=(introduce(group, (4,)),)))
    away = (Preemption("g/0", "recompute"),)
    batch.apply(StepPlan(step=1, preempted=away, dropped=("g/0",)))
    assert batch.contents() == {}
    assert "g" in batch.request_ids
    batch.apply(StepPlan(step=2, introduced=(introduce(group, (4,)),)))
    rows = batch.sampling_rows("g/0")
    batch.append_tokens(rows, {row.seq_id: 3 for row in rows})
    batch.apply(StepPlan(step=3, dropped=("g/0",)))
    assert "g" in batch.request_ids
    # The other sample ends before it is ever scheduled: it has no row, but the request is over.
    batch.apply(StepPlan(step=4, ended_requests=("g",)))
    assert not batch.request_ids


def test_an_id_may_be_used_again_in_the_plan_that_drops_it() -> None:
    old, new = make_request("r", (1, 2, 3)), make_request("r", (4,), n=2)
    batch = new_batch()
    batch.apply(StepPlan(step=0, new_requests=(old,), introduced=(introduce(old, (5, 6)),)))
    batch.apply(
        StepPlan(
            step=1,
            dropped=("r/0",),
            ended_requests=("r",),
            new_requests=(new,),
            introduced=(introduce(new, (6,)),),
        )
    )
    batch.check_invariants()
    assert batch.contents() == {"r/0": ((4,), (6,))}
    assert len(batch.sampling_rows("r/0")) == 2


def test_a_token_that_the_step_before_samples_is_left_open() -> None:
    asked = make_request("r", (1, 2))
    batch = new_batch()
    batch.apply(StepPlan(step=0, new_requests=(asked,), introduced=(introduce(asked, (5,)),)))
    inputs = batch.build_inputs((ScheduledSequence("r/0", 0, 3),))
    assert inputs.input_ids.tolist() == [1, 2, -1]


def test_a_late_token_of_a_vacated_row_reaches_nobody() -> None:
    asked = make_request("r", (1, 2))
    batch = new_batch()
    batch.apply(StepPlan(step=0, new_requests=(asked,), introduced=(introduce(asked, (5,)),)))
    late = batch.sampling_rows("r/0")
    again = make_request("r", (1, 2))
    batch.apply(
        StepPlan(
            step=1,
            dropped=("r/0",),
            ended_requests=("r",),
            new_requests=(again,),
            introduced=(introduce(again, (6,)),),
        )
    )
    batch.append_tokens(late, {"r/0": 9})
    assert batch.contents() == {"r/0": ((1, 2), (6,))}
    batch.check_invariants()
