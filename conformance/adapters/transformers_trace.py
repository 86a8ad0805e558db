"""Records of transformers' steps, read off its scheduler and its cache between calls."""

from typing import Any, NamedTuple

from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.requests import RequestStatus

from pagetwin.conformance.adapters.foreign import ForeignRun, Sampled
from pagetwin.engine.request import sequence_id
from pagetwin.engine.step import (
    Counters,
    IntroducedSequence,
    Preemption,
    ScheduledSequence,
    StepPlan,
)


class PlannedBatch(NamedTuple):
    """A step that runs: its number, and the states that get a token from it."""

    step: int
    states: list[Any]


class BatchTrace:
    """Watches one batch processor (transformers 5.24): who is active, with which block table.

    A request that gives up its blocks is queued again as a new one whose prompt has what was
    generated; here both are one sequence that was preempted.
    """

    def __init__(self, processor: Any, run: ForeignRun) -> None:
        self._processor = processor
        self._run = run
        self._num_steps = 0
        self._has_row: set[str] = set()
        self._active_before: list[str] = []
        allocators = processor.cache.cache_allocators
        self._full = allocators[FULL_ATTENTION] if list(allocators) == [FULL_ATTENTION] else None

    def has_pending(self) -> bool:
        """Whether anything waits or runs, cancellations to come included."""
        queues = (self._processor.input_queue, self._processor.cancel_queue)
        return self._processor.has_pending_requests() or any(not q.empty() for q in queues)

    def counters(self) -> Counters:
        """The books that are kept. Blocks that only the prefix cache holds count as free."""
        scheduler = self._processor.scheduler
        return Counters(
            num_waiting=len(scheduler.waiting_requests),
            num_running=len(scheduler.active_requests),
            num_free_blocks=self._num_free_blocks(),
        )

    def before_plan(self) -> None:
        self._active_before = list(self._processor.scheduler.active_requests)

    def planned(self) -> PlannedBatch:
        """Writes the plan down that prepare_next_batch has just made."""
        scheduler, step = self._processor.scheduler, self._num_steps
        self._num_steps += 1
        preempted = [r for r in self._active_before if r in scheduler.waiting_requests]
        self._has_row.difference_update(preempted)
        scheduled: list[ScheduledSequence] = []
        introduced: list[IntroducedSequence] = []
        states: list[Any] = []
        for future in self._processor.inputs_and_outputs.requests_in_batch:
            state, num_tokens = future.state, future.query_length
            computed = state.position_offset - num_tokens
            seq_id = sequence_id(state.request_id, 0)
            scheduled.append(
                ScheduledSequence(seq_id, computed, num_tokens, samples=future.has_new_token)
            )
            if state.request_id not in self._has_row:
                self._has_row.add(state.request_id)
                introduced.append(self._introduced(state, seq_id, computed))
            if future.has_new_token:
                states.append(state)
        plan = StepPlan(
            step=step,
            scheduled=tuple(scheduled),
            introduced=tuple(introduced),
            preempted=tuple(Preemption(sequence_id(r, 0), "recompute") for r in preempted),
        )
        self._run.planned(plan, self.counters(), self._tables())
        return PlannedBatch(step, states)

    def closed(self, batch: PlannedBatch) -> None:
        """Writes the result down, after update_batch."""
        sampled = [self._sampled(state) for state in batch.states if state.generated_tokens]
        self._run.closed(batch.step, sampled, self.counters())

    def _introduced(self, state: Any, seq_id: str, computed: int) -> IntroducedSequence:
        return IntroducedSequence(
            seq_id=seq_id,
            request_id=state.request_id,
            sample_index=0,
            token_ids=(*state.initial_tokens, *state.generated_tokens),
            block_ids=self._tables().get(seq_id, ()),
            num_cached_tokens=computed,
        )

    def _sampled(self, state: Any) -> Sampled:
        token = state.generated_tokens[-1]
        logprob = state.logprobs[-1] if state.logprobs else None
        if state.status != RequestStatus.FINISHED:
            return Sampled(state.request_id, token, logprob)
        reason = "stop" if token in state._eos_token_ids else "length"
        return Sampled(state.request_id, token, logprob, "stop" if reason == "stop" else "length")

    def _tables(self) -> dict[str, tuple[int, ...]]:
        """Every table there is. A ring of windowed layers is no table by position: left out."""
        if self._full is None:
            return {}
        return {
            sequence_id(request_id, 0): tuple(table)
            for request_id, table in self._full.block_table.items()
        }

    def _num_free_blocks(self) -> int:
        pool = self._processor.cache.pool
        free = 0
        for allocator in self._processor.cache.cache_allocators.values():
            free += pool.count_free_blocks(allocator.index) + len(allocator.ledger.cached_blocks)
            free += pool.num_free_sectors * allocator.blocks_per_sector
        return free
