"""Decides how much of the step a sequence gets (docs/policy.md P2.1), and writes its row."""

from pagetwin.engine.request import Request
from pagetwin.engine.step import (
    BlockCopy,
    IntroducedSequence,
    Preemption,
    ScheduledSequence,
    StepPlan,
)
from pagetwin.simulator.sequence import TwinSequence
from pagetwin.simulator.state import Flight, State


class PlanBuilder:
    """One plan in the making. `rows` are the sequences of `scheduled`, in the same order."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.budget = state.scheduler.max_num_batched_tokens
        self.rows: list[TwinSequence] = []
        self.scheduled: list[ScheduledSequence] = []
        self.introduced: list[IntroducedSequence] = []
        self.new_requests: list[Request] = []
        self.preempted: list[Preemption] = []
        self.swap_outs: list[BlockCopy] = []
        self.swap_ins: list[BlockCopy] = []
        self.copies: list[BlockCopy] = []
        self.pins: list[int] = []

    @property
    def is_empty(self) -> bool:
        """Whether it would neither schedule nor preempt anything."""
        return not self.rows and not self.preempted

    def finish(self, step: int) -> Flight:
        """The plan, with what the executor must forget since the plan before."""
        plan = StepPlan(
            step=step,
            swap_outs=tuple(self.swap_outs),
            swap_ins=tuple(self.swap_ins),
            copies=tuple(self.copies),
            scheduled=tuple(self.scheduled),
            introduced=tuple(self.introduced),
            new_requests=tuple(self.new_requests),
            preempted=tuple(self.preempted),
            dropped=tuple(sorted(self.state.rows_to_drop)),
            ended_requests=tuple(sorted(self.state.requests_to_forget)),
        )
        self.state.requests_to_forget.clear()
        self.state.rows_to_drop.clear()
        return Flight(plan, tuple(self.rows), tuple(self.pins))

    def share(self, seq: TwinSequence, budget: int) -> int:
        """The n of P2.1, for a running sequence and for a swapped-out one (P3.3b)."""
        knobs = self.state.scheduler
        if self.state.flights and self._awaits_result(seq):
            return 0
        computed = seq.num_planned_computed
        behind = seq.num_planned_tokens() - computed
        num_tokens = min(behind, budget, knobs.max_model_len - computed)
        if behind > 1:  # P1.3: prefilling
            if knobs.long_prefill_token_threshold > 0:
                num_tokens = min(num_tokens, knobs.long_prefill_token_threshold)
            if not knobs.enable_chunked_prefill and num_tokens < behind:
                return 0
        return num_tokens

    def _awaits_result(self, seq: TwinSequence) -> bool:
        """P5.3a. A group that waits for its fork has no placeholder: it is not behind."""
        if seq.group.is_beam_search:
            return True
        if seq.num_placeholders() == 0:
            return False
        return seq.num_planned_tokens() >= seq.group.length_cap

    def num_appended(self, seq: TwinSequence, num_tokens: int) -> int:
        """Blocks that the table lacks at its end for `num_tokens` more (P2.2)."""
        missing = self.state.blocks_for(seq.num_planned_computed + num_tokens) - len(seq.table)
        return missing if missing > 0 else 0

    def append_blocks(self, seq: TwinSequence, num_tokens: int) -> list[int]:
        """Takes those blocks; the caller has made sure that they are free."""
        new = self.state.pool.take_blocks(self.num_appended(seq, num_tokens))
        seq.table.extend(new)
        return new

    def schedule(
        self,
        seq: TwinSequence,
        num_tokens: int,
        new: list[int],
        *,
        replaced: list[tuple[int, int]] | None = None,
        num_cached_tokens: int = 0,
    ) -> None:
        """Gives the sequence its row; `new` and `replaced` are in its table already."""
        start = seq.num_planned_computed
        is_introduced = seq.seq_id not in self.state.rows_valid
        samples = start + num_tokens == seq.num_planned_tokens()  # P2.7
        if is_introduced:  # with its whole table, so that the row need not tell what is new
            row = ScheduledSequence(seq.seq_id, start, num_tokens, samples=samples)
        else:
            changes = tuple(new), tuple(replaced or ())
            row = ScheduledSequence(seq.seq_id, start, num_tokens, *changes, samples)
        if is_introduced:
            self._introduce(seq, num_cached_tokens)
        if not seq.group.was_scheduled:
            seq.group.was_scheduled = True
            self.new_requests.append(seq.group.request)
        seq.num_planned_computed = start + num_tokens
        self.rows.append(seq)
        self.scheduled.append(row)
        self.budget -= num_tokens

    def schedule_token(self, seq: TwinSequence) -> bool:
        """Gives a sequence that only decodes (`decoding`) its row; False, and nothing changed, if
        the budget is spent, or a block is missing and none is free."""
        state, start = self.state, seq.num_planned_computed
        new: tuple[int, ...] = ()
        if self.budget == 0:
            return False
        if start + state.lookahead >= len(seq.table) * state.cache.block_size:
            if state.pool.num_free == 0:
                return False
            new = (state.pool.take(),)
            seq.table.extend(new)
        row = ScheduledSequence(seq.seq_id, start, 1, new, (), True)
        seq.num_planned_computed = start + 1
        self.rows.append(seq)
        self.scheduled.append(row)
        self.budget -= 1
        return True

    def _introduce(self, seq: TwinSequence, num_cached_tokens: int) -> None:
        self.state.rows_held.add(seq.seq_id)
        self.state.rows_valid.add(seq.seq_id)
        self.introduced.append(
            IntroducedSequence(
                seq_id=seq.seq_id,
                request_id=seq.group.request.request_id,
                sample_index=seq.sample_index,
                token_ids=tuple(seq.token_ids),
                block_ids=tuple(seq.table),
                num_cached_tokens=num_cached_tokens,
            )
        )
