"""Records of vLLM's steps: a scheduler that shows what it decided, and who holds which blocks."""

from collections.abc import Callable, Mapping
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from pagetwin.conformance.adapters.foreign import ForeignRun
from pagetwin.engine.request import sequence_id
from pagetwin.engine.step import (
    BlockCopy,
    Counters,
    IntroducedSequence,
    Preemption,
    ScheduledSequence,
    StepPlan,
)


class RecordingScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler (0.32), which tells each plan to whoever asked to be told."""

    on_plan: Callable[[list[str], Any], None] | None = None

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        running = [request.request_id for request in self.running]
        output = super().schedule(*args, **kwargs)
        if self.on_plan is not None:
            self.on_plan(running, output)
        return output


class SchedulerTrace:
    """Turns vLLM's scheduler outputs into plans of ours; decides nothing.

    vLLM makes a request of its own of each sample; `states` are what its front end knows of them,
    by the scheduler's ids.
    """

    def __init__(
        self, scheduler: RecordingScheduler, run: ForeignRun, states: Mapping[str, Any]
    ) -> None:
        self.step = -1
        """Of the last plan."""
        self._scheduler = scheduler
        self._run = run
        self._states = states
        scheduler.on_plan = self._planned

    def counters(self) -> Counters:
        """The books that are kept. Blocks that only the prefix cache holds count as free."""
        return Counters(
            num_waiting=len(self._scheduler.waiting),
            num_running=len(self._scheduler.running),
            num_free_blocks=self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        )

    def _planned(self, running_before: list[str], output: Any) -> None:
        self.step += 1
        cached = output.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        new = {one.req_id for one in output.scheduled_new_reqs}
        computed |= {one.req_id: one.num_computed_tokens for one in output.scheduled_new_reqs}
        # The last to be admitted is preempted first.
        preempted = [r for r in reversed(running_before) if r in (output.preempted_req_ids or ())]
        scheduled = [
            self._scheduled(one, computed[one], num_tokens)
            for one, num_tokens in output.num_scheduled_tokens.items()
        ]
        # vLLM keeps the new and the returning apart; the order of admission is that of the tokens.
        appearing = [
            r for r in output.num_scheduled_tokens if r in new or r in cached.resumed_req_ids
        ]
        copies = getattr(output, "kv_cache_block_copies", None) or ()
        plan = StepPlan(
            step=self.step,
            copies=tuple(BlockCopy(*pair) for pair in copies),
            scheduled=tuple(scheduled),
            introduced=tuple(self._introduced(one, computed[one]) for one in appearing),
            preempted=tuple(Preemption(self._sequence(one), "recompute") for one in preempted),
        )
        tables = {
            self._sequence(r.request_id): self._table(r.request_id) for r in self._scheduler.running
        }
        self._run.planned(plan, self.counters(), tables)

    def _scheduled(self, internal_id: str, computed: int, num_tokens: int) -> ScheduledSequence:
        known = self._scheduler.requests[internal_id].num_tokens
        samples = computed + num_tokens == known
        return ScheduledSequence(self._sequence(internal_id), computed, num_tokens, samples=samples)

    def _introduced(self, internal_id: str, computed: int) -> IntroducedSequence:
        state = self._states[internal_id]
        return IntroducedSequence(
            seq_id=self._sequence(internal_id),
            request_id=state.external_req_id,
            sample_index=state.request_index,
            token_ids=tuple(self._scheduler.requests[internal_id].all_token_ids),
            block_ids=self._table(internal_id),
            num_cached_tokens=computed,
        )

    def _table(self, internal_id: str) -> tuple[int, ...]:
        """Of the one group of layers that the adapter's models have."""
        groups = self._scheduler.kv_cache_manager.get_block_ids(internal_id)
        return tuple(groups[0])

    def _sequence(self, internal_id: str) -> str:
        state = self._states[internal_id]
        return sequence_id(state.external_req_id, state.request_index)
