"""A plan in the making: what a step does so far, and what is left of its budget."""

from dataclasses import dataclass, field

from pagetwin.engine.config import SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.scheduler_state import SchedulerState
from pagetwin.engine.sequence import Sequence
from pagetwin.engine.step import (
    BlockCopy,
    IntroducedSequence,
    Preemption,
    ScheduledSequence,
    StepPlan,
)


def chunk(config: SchedulerConfig, behind: int, num_computed_tokens: int, budget: int) -> int:
    """Tokens that one who is `behind` by so many gets (P2.1)."""
    granted = min(behind, budget, config.max_model_len - num_computed_tokens)
    if behind > 1:
        if config.long_prefill_token_threshold:
            granted = min(granted, config.long_prefill_token_threshold)
        if not config.enable_chunked_prefill and granted < behind:
            return 0
    return granted


@dataclass(slots=True)
class PlanDraft:
    """The lists of a StepPlan while they grow; planning and admission both add to them."""

    state: SchedulerState
    budget: int
    swap_outs: list[BlockCopy] = field(default_factory=list)
    swap_ins: list[BlockCopy] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    scheduled: list[ScheduledSequence] = field(default_factory=list)
    introduced: list[IntroducedSequence] = field(default_factory=list)
    new_requests: list[Request] = field(default_factory=list)
    preempted: list[Preemption] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    """Pinned sources of partial hits."""

    def schedule(self, seq: Sequence, entry: ScheduledSequence) -> None:
        """Gives a running sequence its share of the step; its blocks must be there."""
        self.scheduled.append(entry)
        num_tokens = entry.num_scheduled_tokens
        self.budget -= num_tokens
        seq.num_computed_tokens += num_tokens
        seq.last_step = self.state.next_step
        if entry.samples and seq.group.forked and not seq.is_beam:
            seq.num_placeholders += 1

    def introduce(self, seq: Sequence, num_tokens: int, *, num_cached_tokens: int = 0) -> None:
        """Plans a sequence that the executor has no valid row for; its table must be complete."""
        group = seq.group
        if not group.introduced:
            group.introduced = True
            self.new_requests.append(group.request)
        self.introduced.append(
            IntroducedSequence(
                seq_id=seq.seq_id,
                request_id=group.request.request_id,
                sample_index=seq.sample_index,
                token_ids=tuple(seq.token_ids),
                block_ids=self.state.blocks.get_block_table(seq.seq_id),
                num_cached_tokens=num_cached_tokens,
            )
        )
        seq.has_row = True
        seq.needs_introduction = False
        start = seq.num_computed_tokens
        samples = start + num_tokens == seq.num_tokens
        entry = ScheduledSequence(seq.seq_id, start, num_tokens, samples=samples)
        self.schedule(seq, entry)

    def finish(self) -> StepPlan:
        """The plan, which is in flight from here on."""
        state = self.state
        plan = StepPlan(
            step=state.next_step,
            swap_outs=tuple(self.swap_outs),
            swap_ins=tuple(self.swap_ins),
            copies=tuple(self.copies),
            scheduled=tuple(self.scheduled),
            introduced=tuple(self.introduced),
            new_requests=tuple(self.new_requests),
            preempted=tuple(self.preempted),
            dropped=tuple(sorted(state.dropped)),
            ended_requests=tuple(sorted(state.ended_requests)),
        )
        state.dropped.clear()
        state.ended_requests.clear()
        if self.sources:
            state.copy_sources[plan.step] = self.sources
        state.in_flight.append(plan)
        state.next_step += 1
        return plan
