"""Admission: who joins the running sequences in a step, and from which prefix (docs/policy.md P2.3,
P2.4)."""

from pagetwin.engine.awaited_blocks import AwaitedBlock, BlocksBeingComputed
from pagetwin.engine.block_manager import NO_HIT, AllocStatus, PrefixHit
from pagetwin.engine.plan_draft import PlanDraft, chunk
from pagetwin.engine.scheduler_state import SchedulerState
from pagetwin.engine.sequence import Sequence


class Admission:
    """Admits from the heads of the two lines, until one does not fit."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._lookahead = state.config.num_lookahead_slots

    def admit(self, draft: PlanDraft) -> None:
        """Adds to a plan that preempts nothing: first the swapped-out, then the waiting (P2.3)."""
        if self._restore_swapped(draft):
            self._start_waiting(draft)

    def _restore_swapped(self, draft: PlanDraft) -> bool:
        """Whether all of them are back; while one is not, nobody else is admitted."""
        while (seq := self._state.swapped.head()) is not None:
            if not (
                self._has_room(draft)
                and self._fits_beside_running(seq)
                and self._swap_in(seq, draft)
            ):
                return False
        return True

    def _start_waiting(self, draft: PlanDraft) -> None:
        waiting = self._state.waiting
        computing = BlocksBeingComputed(self._state, draft)
        awaited: AwaitedBlock | None = None
        while self._has_room(draft) and (seq := waiting.head()) is not None:
            # Where hundreds wait for one prefix, the first alone is looked up: nothing has changed
            # since, and the others begin as it does.
            if awaited is None or not (self._waits(seq) and awaited.is_block_of(seq)):
                hit = self._look_up(seq)
                awaited = computing.next_of(seq, hit) if self._waits(seq) else None
            if awaited is not None:
                waiting.pass_over()
            elif not (self._fits_beside_running(seq) and self._start(seq, hit, draft)):
                break
        waiting.rejoin()

    def _has_room(self, draft: PlanDraft) -> bool:
        return draft.budget > 0 and self._state.num_running < self._state.config.max_num_seqs

    def _fits_beside_running(self, seq: Sequence) -> bool:
        return self._state.num_running + seq.weight <= self._state.config.max_num_seqs

    def _swap_in(self, seq: Sequence, draft: PlanDraft) -> bool:
        state = self._state
        start = seq.num_computed_tokens
        num_tokens = chunk(state.config, seq.num_tokens - start, start, draft.budget)
        num_slots = start + num_tokens + self._lookahead
        if num_tokens <= 0 or not state.blocks.can_swap_in(
            seq.seq_id, num_slots, watermark=self._watermark()
        ):
            return False
        state.swapped.remove(seq)
        draft.swap_ins.extend(state.blocks.swap_in(seq.seq_id, num_slots))
        state.blocks.skip_marking(seq.seq_id, start)
        state.start_running(seq)
        draft.introduce(seq, num_tokens)
        return True

    def _is_looked_up(self, seq: Sequence) -> bool:
        """Prompt log-probabilities ask for the whole prompt, so they skip hits (P2.4)."""
        return (
            self._state.cache.enable_prefix_caching
            and seq.group.request.sampling_params.prompt_logprobs is None
        )

    def _waits(self, seq: Sequence) -> bool:
        return self._state.config.wait_for_prefix and self._is_looked_up(seq)

    def _look_up(self, seq: Sequence) -> PrefixHit:
        if not self._is_looked_up(seq):
            return NO_HIT
        return self._state.blocks.lookup_prefix(seq.keys, seq.token_ids)

    def _start(self, seq: Sequence, hit: PrefixHit, draft: PlanDraft) -> bool:
        """Admits a waiting sequence, from as much of the hit as fits (P2.4c)."""
        state = self._state
        admitted = self._start_from(seq, hit, draft)
        if not admitted and hit.num_partial:
            hit = hit.without_partial()
            admitted = self._start_from(seq, hit, draft)
        if admitted and self._is_looked_up(seq):
            state.totals.prefix_queries += len(seq.token_ids)
            state.totals.prefix_hit_tokens += hit.num_tokens(state.cache.block_size)
            state.totals.partial_hits += hit.num_partial > 0
        return admitted

    def _start_from(self, seq: Sequence, hit: PrefixHit, draft: PlanDraft) -> bool:
        state = self._state
        start = hit.num_tokens(state.cache.block_size)
        num_tokens = chunk(state.config, seq.num_tokens - start, start, draft.budget)
        num_slots = start + num_tokens + self._lookahead
        if num_tokens <= 0:
            return False
        status = state.blocks.can_allocate(num_slots, hit, watermark=self._watermark())
        if status is not AllocStatus.OK:
            return False
        state.waiting.remove(seq)
        copy = state.blocks.allocate(seq.seq_id, num_slots, hit)
        if copy is not None:
            draft.copies.append(copy)
            draft.sources.append(copy.source)
        seq.num_computed_tokens = start
        state.start_running(seq)
        draft.introduce(seq, num_tokens, num_cached_tokens=start)
        return True

    def _watermark(self) -> int:
        """Blocks to keep free; none while nothing runs (P2.4b)."""
        return self._state.cache.watermark_blocks if self._state.running else 0
