"""The scheduler: a pure state machine over requests, KV blocks and steps (docs/policy.md).

The cycle is `schedule()` -> StepPlan -> an executor -> StepResult -> `update(plan, result)`.
It knows no clock, no model and no torch: the same calls give the same plans, block ids and
counters anywhere. engine/planning.py decides a step, engine/closing.py applies its result.
"""

from contextlib import AbstractContextManager

from pagetwin.engine.closing import Closer
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import RequestError
from pagetwin.engine.planning import Planner
from pagetwin.engine.policies import order_key
from pagetwin.engine.request import Request
from pagetwin.engine.scheduler_state import SchedulerState
from pagetwin.engine.sequence import SequenceGroup, SequenceStatus
from pagetwin.engine.step import Counters, StepPlan, StepResult, StepUpdate


class Scheduler:
    """Decides, step by step, which sequences run and which blocks they use."""

    def __init__(self, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
        self._state = SchedulerState(cache, scheduler)
        self._planner = Planner(self._state)
        self._closer = Closer(self._state)

    def add_request(self, request: Request) -> None:
        """Puts a request in line; RequestError, and nothing changed, if it can never run (P2.5)."""
        state = self._state
        self._check_feasible(request)
        key = order_key(state.policy, request)
        limit = state.stop_conditions.token_limit(request)
        group = SequenceGroup(request, key, limit, state.cache)
        state.groups[request.request_id] = group
        [seq] = group.sequences
        state.sequences[seq.seq_id] = seq
        state.waiting.add(seq)

    def abort_request(self, request_id: str) -> bool:
        """Ends a live request in any state; False, and nothing changed, without one (P5.2)."""
        state = self._state
        group = state.groups.get(request_id)
        if group is None:
            return False
        for seq in group.sequences:
            if not seq.status.is_finished:
                state.leave_line(seq)
                state.end(seq, SequenceStatus.FINISHED_ABORTED)
        state.forget_if_ended(group)
        state.totals.aborts += 1
        return True

    def preempt_request(self, request_id: str) -> bool:
        """Has the next plan preempt what runs of the request; False, and nothing changed, if
        nothing does (P3.5). For tests."""
        group = self._state.groups.get(request_id)
        if group is None or all(s.status is not SequenceStatus.RUNNING for s in group.sequences):
            return False
        self._state.to_preempt.add(request_id)
        return True

    def reset_prefix_cache(self) -> bool:
        """Clears the prefix cache; False, and nothing changed, while blocks are held (P4.8)."""
        return self._state.blocks.reset_prefix_cache()

    def has_unfinished_requests(self) -> bool:
        return bool(self._state.groups) or bool(self._state.in_flight)

    def schedule(self) -> StepPlan | None:
        """The next step's plan; None if there is nothing to do before the next result or request.

        A second plan may be asked for before the first one's update (P5.3).
        """
        if len(self._state.in_flight) > 1:
            raise ValueError("two steps are in flight; update the older one before planning more")
        return self._planner.plan()

    def without_free_blocks(self) -> AbstractContextManager[None]:
        """Plans that are made while it lasts find no free block but those they free themselves,
        as if somebody else had taken the others for a moment: memory runs short on demand."""
        return self._state.blocks.pool.without_free_blocks()

    def update(self, plan: StepPlan, result: StepResult) -> StepUpdate:
        """Closes the oldest step in flight; ValueError, and nothing changed, for any other."""
        return self._closer.close(plan, result)

    def counters(self) -> Counters:
        state, totals = self._state, self._state.totals
        return Counters(
            num_waiting=len(state.waiting),
            num_running=state.num_running,
            num_swapped=len(state.swapped),
            num_free_blocks=state.blocks.num_free_blocks,
            num_cached_blocks=state.blocks.pool.num_cached,
            num_free_host_blocks=state.blocks.num_free_host_blocks,
            prefix_queries=totals.prefix_queries,
            prefix_hit_tokens=totals.prefix_hit_tokens,
            partial_hits=totals.partial_hits,
            evictions=state.blocks.pool.evictions,
            cow_copies=state.blocks.cow_copies,
            preemptions_recompute=totals.preemptions_recompute,
            preemptions_swap=totals.preemptions_swap,
            finished=totals.finished,
            aborts=totals.aborts,
        )

    def block_table(self, seq_id: str) -> tuple[int, ...]:
        """Device blocks of a sequence; empty for one that holds none."""
        return self._state.blocks.get_block_table(seq_id)

    def empty_blocks(self) -> list[int]:
        """Device blocks that nobody holds and that cache nothing: what is there is of no use."""
        return self._state.blocks.pool.empty_blocks

    def check_invariants(self) -> None:
        """Recounts everything the slow way; AssertionError on a difference."""
        state = self._state
        state.blocks.check_invariants()
        running = [seq.seq_id for seq in state.running]
        assert len(set(running)) == len(running), f"a sequence runs twice: {running}"
        assert state.num_running == sum(seq.weight for seq in state.running)
        assert state.num_running <= state.config.max_num_seqs
        by_status = dict.fromkeys(SequenceStatus, 0)
        for seq in state.sequences.values():
            by_status[seq.status] += 1
            assert state.blocks.holds_blocks(seq.seq_id) == (seq.status is SequenceStatus.RUNNING)
        assert by_status[SequenceStatus.RUNNING] == len(running)
        assert by_status[SequenceStatus.SWAPPED] == len(state.swapped)
        waiting = by_status[SequenceStatus.WAITING] + by_status[SequenceStatus.PREEMPTED]
        assert waiting == len(state.waiting)
        assert sum(by_status.values()) == len(running) + len(state.swapped) + waiting
        assert state.to_preempt <= state.groups.keys(), "a forced preemption outlives its request"
        if not state.is_fcfs:
            keys = [seq.order_key for seq in state.running]
            assert keys == sorted(keys), "running is not in the policy's order"

    def _check_feasible(self, request: Request) -> None:
        """Refuses what can never start, naming the limit (P2.5)."""
        state, config = self._state, self._state.config
        name = f"request {request.request_id!r}"
        if state.is_id_in_use(request.request_id):
            raise RequestError(f"{name}: the id is in use; give each request an id of its own")
        num_prompt = request.num_prompt_tokens
        if num_prompt == 0:
            raise RequestError(f"{name}: the prompt has no token; give at least one")
        if num_prompt + 1 > config.max_model_len:
            raise RequestError(
                f"{name}: a prompt of {num_prompt} tokens and one output token are more than "
                f"max_model_len={config.max_model_len}; shorten the prompt"
            )
        if request.num_samples > config.max_num_seqs:
            raise RequestError(
                f"{name}: {request.num_samples} samples are more than "
                f"max_num_seqs={config.max_num_seqs}; ask for fewer, or raise max_num_seqs"
            )
        lookahead = config.num_lookahead_slots
        needed = self._num_blocks(num_prompt + max(1, lookahead))
        if request.beam_search is not None:
            needed = self._num_beam_blocks(request)
        usable = state.cache.num_blocks - 1
        if needed > usable:
            raise RequestError(
                f"{name}: it needs {needed} KV blocks of {state.cache.block_size} tokens, the pool "
                f"has {usable}; shorten it, or raise num_blocks"
            )

    def _num_beam_blocks(self, request: Request) -> int:
        """Blocks that keep a beam search's beams side by side at full length, and the watermark."""
        config = self._state.config
        num_tokens = config.max_model_len
        if request.sampling_params.max_tokens is not None:
            num_tokens = min(
                num_tokens, request.num_prompt_tokens + request.sampling_params.max_tokens
            )
        per_beam = self._num_blocks(num_tokens + config.num_lookahead_slots)
        return request.num_samples * per_beam + self._state.cache.watermark_blocks

    def _num_blocks(self, num_slots: int) -> int:
        return -(-num_slots // self._state.cache.block_size)
