"""The first half of a step: who gets how many tokens, and which blocks (docs/policy.md P2, P3)."""

from dataclasses import dataclass, field

from pagetwin.engine.block_manager import NOTHING_APPENDED, AllocStatus, PrefixHit
from pagetwin.engine.request import Request
from pagetwin.engine.scheduler_state import SchedulerState
from pagetwin.engine.sequence import Sequence, SequenceStatus
from pagetwin.engine.step import (
    BlockCopy,
    IntroducedSequence,
    Preemption,
    ScheduledSequence,
    StepPlan,
)


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    budget: int
    swap_outs: list[BlockCopy] = field(default_factory=list)
    swap_ins: list[BlockCopy] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    scheduled: list[ScheduledSequence] = field(default_factory=list)
    introduced: list[IntroducedSequence] = field(default_factory=list)
    new_requests: list[Request] = field(default_factory=list)
    preempted: list[Preemption] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)


class Planner:
    """Makes the plans of a scheduler."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._lookahead = state.config.num_lookahead_slots

    def plan(self) -> StepPlan | None:
        """The next step; None if there is nothing to plan, or a result must be awaited first."""
        state = self._state
        state.blocks.start_step()
        if state.in_flight and not self._fits_without_preemption():
            return None
        draft = _Draft(budget=state.config.max_num_batched_tokens)
        self._plan_running(draft)
        if not draft.preempted:
            self._admit(draft)
        if not draft.scheduled and not draft.preempted:
            if state.in_flight or not state.running:
                return None
            # Only resting beams run; a sibling waits behind one that does not fit (P2.6a).
            self._preempt(self._victim(), draft)
        return self._finish(draft)

    def _finish(self, draft: _Draft) -> StepPlan:
        state = self._state
        plan = StepPlan(
            step=state.next_step,
            swap_outs=tuple(draft.swap_outs),
            swap_ins=tuple(draft.swap_ins),
            copies=tuple(draft.copies),
            scheduled=tuple(draft.scheduled),
            introduced=tuple(draft.introduced),
            new_requests=tuple(draft.new_requests),
            preempted=tuple(draft.preempted),
            dropped=tuple(sorted(state.dropped)),
            ended_requests=tuple(sorted(state.ended_requests)),
        )
        state.dropped.clear()
        state.ended_requests.clear()
        if draft.sources:
            state.copy_sources[plan.step] = draft.sources
        state.in_flight.append(plan)
        state.next_step += 1
        return plan

    def _plan_running(self, draft: _Draft) -> None:
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
        return behind if behind <= 1 else self._chunk(behind, seq.num_computed_tokens, budget)

    def _chunk(self, behind: int, num_computed_tokens: int, budget: int) -> int:
        """Tokens that one who is `behind` by so many gets (P2.1)."""
        config = self._state.config
        granted = min(behind, budget, config.max_model_len - num_computed_tokens)
        if behind > 1:
            if config.long_prefill_token_threshold:
                granted = min(granted, config.long_prefill_token_threshold)
            if not config.enable_chunked_prefill and granted < behind:
                return 0
        return granted

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

    def _extend(self, seq: Sequence, num_tokens: int, draft: _Draft) -> None:
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
            self._introduce(seq, num_tokens, draft)
            return
        samples = start + num_tokens == len(seq.token_ids) + seq.num_placeholders
        if appended is NOTHING_APPENDED:
            entry = ScheduledSequence(seq.seq_id, start, num_tokens, (), (), samples)
        else:
            draft.copies.extend(appended.copies)
            new, replaced = appended.new_block_ids, appended.replaced_blocks
            entry = ScheduledSequence(seq.seq_id, start, num_tokens, new, replaced, samples)
        self._schedule(seq, entry, draft)

    def _introduce(
        self, seq: Sequence, num_tokens: int, draft: _Draft, *, num_cached_tokens: int = 0
    ) -> None:
        """Plans a sequence that the executor has no valid row for; its table must be complete."""
        group = seq.group
        if not group.introduced:
            group.introduced = True
            draft.new_requests.append(group.request)
        draft.introduced.append(
            IntroducedSequence(
                seq_id=seq.seq_id,
                request_id=group.request.request_id,
                sample_index=seq.sample_index,
                token_ids=tuple(seq.token_ids),
                block_ids=self._state.blocks.get_block_table(seq.seq_id),
                num_cached_tokens=num_cached_tokens,
            )
        )
        seq.has_row = True
        seq.needs_introduction = False
        start = seq.num_computed_tokens
        samples = start + num_tokens == seq.num_tokens
        entry = ScheduledSequence(seq.seq_id, start, num_tokens, samples=samples)
        self._schedule(seq, entry, draft)

    def _schedule(self, seq: Sequence, entry: ScheduledSequence, draft: _Draft) -> None:
        draft.scheduled.append(entry)
        num_tokens = entry.num_scheduled_tokens
        draft.budget -= num_tokens
        seq.num_computed_tokens += num_tokens
        seq.last_step = self._state.next_step
        if entry.samples and seq.group.forked and not seq.is_beam:
            seq.num_placeholders += 1

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

    def _preempt(self, victim: Sequence, draft: _Draft) -> None:
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

    def _admit(self, draft: _Draft) -> None:
        """Admits from the heads of the two lines, until one does not fit (P2.3)."""
        state = self._state
        for queue, admit in ((state.swapped, self._swap_in), (state.waiting, self._start)):
            while (seq := queue.head()) is not None:
                if draft.budget <= 0 or state.num_running >= state.config.max_num_seqs:
                    return
                if state.num_running + seq.weight > state.config.max_num_seqs:
                    return
                if not admit(seq, draft):
                    return

    def _swap_in(self, seq: Sequence, draft: _Draft) -> bool:
        state = self._state
        start = seq.num_computed_tokens
        num_tokens = self._chunk(seq.num_tokens - start, start, draft.budget)
        num_slots = start + num_tokens + self._lookahead
        if num_tokens <= 0 or not state.blocks.can_swap_in(
            seq.seq_id, num_slots, watermark=self._watermark()
        ):
            return False
        state.swapped.remove(seq)
        draft.swap_ins.extend(state.blocks.swap_in(seq.seq_id, num_slots))
        state.blocks.skip_marking(seq.seq_id, start)
        state.start_running(seq)
        self._introduce(seq, num_tokens, draft)
        return True

    def _start(self, seq: Sequence, draft: _Draft) -> bool:
        """Admits a waiting sequence, from the longest cached prefix that fits (P2.4)."""
        state = self._state
        is_looked_up = (
            state.cache.enable_prefix_caching
            and seq.group.request.sampling_params.prompt_logprobs is None
        )
        hit = state.blocks.lookup_prefix(seq.keys, seq.token_ids) if is_looked_up else PrefixHit()
        admitted = self._start_from(seq, hit, draft)
        if not admitted and hit.num_partial:
            hit = hit.without_partial()
            admitted = self._start_from(seq, hit, draft)
        if admitted and is_looked_up:
            state.totals.prefix_queries += len(seq.token_ids)
            state.totals.prefix_hit_tokens += hit.num_tokens(state.cache.block_size)
            state.totals.partial_hits += hit.num_partial > 0
        return admitted

    def _start_from(self, seq: Sequence, hit: PrefixHit, draft: _Draft) -> bool:
        state = self._state
        start = hit.num_tokens(state.cache.block_size)
        num_tokens = self._chunk(seq.num_tokens - start, start, draft.budget)
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
        self._introduce(seq, num_tokens, draft, num_cached_tokens=start)
        return True

    def _watermark(self) -> int:
        """Blocks to keep free; none while nothing runs (P2.4b)."""
        return self._state.cache.watermark_blocks if self._state.running else 0
