"""The first half of a step: who gets how many tokens, and which blocks (docs/policy.md P2, P3)."""

from pagetwin.engine.admission import Admission
from pagetwin.engine.block_manager import NOTHING_APPENDED
from pagetwin.engine.plan_draft import PlanDraft, chunk
from pagetwin.engine.scheduler_state import SchedulerState
from pagetwin.engine.sequence import Sequence, SequenceStatus
from pagetwin.engine.step import Preemption, ScheduledSequence, StepPlan


class Planner:
    """Makes the plans of a scheduler."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._admission = Admission(state)
        self._lookahead = state.config.num_lookahead_slots

    def plan(self) -> StepPlan | None:
        """The next step; None if there is nothing to plan, or a result must be awaited first."""
        state = self._state
        state.blocks.start_step()
        if state.in_flight and (state.to_preempt or not self._fits_without_preemption()):
            return None
        draft = PlanDraft(state, state.config.max_num_batched_tokens)
        if state.to_preempt:
            self._preempt_as_asked(draft)
        self._plan_running(draft)
        if not draft.preempted:
            self._admission.admit(draft)
        if not draft.scheduled and not draft.preempted:
            if state.in_flight or not state.running:
                return None
            # Only resting beams run; a sibling waits behind one that does not fit (P2.6a).
            self._preempt(self._victim(), draft)
        return draft.finish()

    def _preempt_as_asked(self, draft: PlanDraft) -> None:
        """Carries out the forced preemptions (P3.5)."""
        state = self._state
        for seq in reversed(tuple(state.running)):
            if seq.group.request.request_id in state.to_preempt:
                self._preempt(seq, draft)
        state.to_preempt.clear()

    def _plan_running(self, draft: PlanDraft) -> None:
        # A copy, since preemption shortens the list while it is visited.
        for seq in tuple(self._state.running):
            if draft.budget <= 0:
                return
            if seq.status is SequenceStatus.RUNNING:
                num_tokens = self._share(seq, draft.budget)
                if num_tokens > 0:
                    self._extend(seq, num_tokens, draft)

    def _share(self, seq: Sequence, budget: int) -> int:
        """Tokens that a running sequence gets in this step (P2.1, P5.3a)."""
        if self._state.in_flight and self._must_wait(seq):
            return 0
        behind = len(seq.token_ids) + seq.num_placeholders - seq.num_computed_tokens
        if behind <= 1:
            return behind
        return chunk(self._state.config, behind, seq.num_computed_tokens, budget)

    def _must_wait(self, seq: Sequence) -> bool:
        if seq.is_beam:
            return True
        # Whatever the token in flight turns out to be, it may be the last.
        return seq.num_placeholders > 0 and seq.num_tokens >= seq.group.token_limit

    def _fits_without_preemption(self) -> bool:
        """Whether the free blocks suffice for all running sequences at once (P5.3b)."""
        state = self._state
        budget = state.config.max_num_batched_tokens
        # A sequence misses at most the blocks of its new slots, one that it begins with them, and
        # a copy. Mostly so many are free, and nobody needs to be asked.
        block_size, num_running = state.cache.block_size, len(state.running)
        num_slots = budget + num_running * self._lookahead
        if num_slots // block_size + 2 * num_running <= state.blocks.num_free_blocks:
            return True
        missing = 0
        for seq in state.running:
            num_tokens = self._share(seq, budget) if budget > 0 else 0
            if num_tokens > 0:
                start = seq.num_computed_tokens
                end = start + num_tokens + self._lookahead
                missing += state.blocks.num_missing(seq.seq_id, start, end)
                budget -= num_tokens
        return missing <= state.blocks.num_free_blocks

    def _extend(self, seq: Sequence, num_tokens: int, draft: PlanDraft) -> None:
        """Plans a running sequence, preempting others, or itself, while blocks are short (P2.2)."""
        state = self._state
        start = seq.num_computed_tokens
        end = start + num_tokens + self._lookahead
        while (appended := state.blocks.try_append_slots(seq.seq_id, start, end)) is None:
            victim = self._victim()
            self._preempt(victim, draft)
            if victim is seq:
                return
        if seq.needs_introduction:
            draft.copies.extend(appended.copies)
            draft.introduce(seq, num_tokens)
            return
        samples = start + num_tokens == len(seq.token_ids) + seq.num_placeholders
        if appended is NOTHING_APPENDED:
            entry = ScheduledSequence(seq.seq_id, start, num_tokens, (), (), samples)
        else:
            draft.copies.extend(appended.copies)
            new, replaced = appended.new_block_ids, appended.replaced_blocks
            entry = ScheduledSequence(seq.seq_id, start, num_tokens, new, replaced, samples)
        draft.schedule(seq, entry)

    def _victim(self) -> Sequence:
        """Who gives up its blocks next (P3.1, P3.1a)."""
        running = self._state.running
        for seq in reversed(running):
            if self._is_resting(seq) and any(
                beam.status is not SequenceStatus.RUNNING for beam in seq.group.sequences
            ):
                return seq
        return running[-1]

    def _is_resting(self, seq: Sequence) -> bool:
        """Whether it is a beam that waits for its siblings (P2.8a).

        One that was planned in this very step has caught up only on paper.
        """
        return (
            seq.is_beam
            and seq.num_computed_tokens == seq.num_tokens
            and seq.last_step != self._state.next_step
        )

    def _preempt(self, victim: Sequence, draft: PlanDraft) -> None:
        """Takes the blocks of a running sequence (P3)."""
        state = self._state
        yielding = self._is_resting(victim)
        state.running.remove(victim)
        state.num_running -= victim.weight
        state.drop_row(victim)
        victim.needs_introduction = True
        computed = victim.num_computed_tokens
        if (
            state.config.preemption_mode == "swap"
            and not victim.is_beam
            and state.blocks.can_swap_out(victim.seq_id, computed)
        ):
            draft.swap_outs.extend(state.blocks.swap_out(victim.seq_id, computed))
            draft.preempted.append(Preemption(victim.seq_id, "swap"))
            victim.move_to(SequenceStatus.SWAPPED)
            state.swapped.add_preempted(victim)
            state.totals.preemptions_swap += 1
        else:
            state.blocks.free(victim.seq_id)
            draft.preempted.append(Preemption(victim.seq_id, "recompute"))
            victim.num_computed_tokens = 0
            victim.move_to(SequenceStatus.PREEMPTED)
            state.waiting.add_preempted(victim, yielding=yielding)
            state.totals.preemptions_recompute += 1
