"""Decides what the next step does: docs/policy.md P2 (one step) and P3 (preemption)."""

from typing import NamedTuple

from pagetwin.engine.request import Request
from pagetwin.engine.step import (
    BlockCopy,
    IntroducedSequence,
    Preemption,
    ScheduledSequence,
    StepPlan,
)
from pagetwin.simulator.memory import NULL_BLOCK, ROOT
from pagetwin.simulator.sequence import TwinSequence, block_extras, prefix_keys
from pagetwin.simulator.state import Flight, State


class Hits(NamedTuple):
    """What the prefix cache has of a sequence: full blocks, then m tokens of `source`."""

    full: list[int]
    source: int = NULL_BLOCK
    num_partial_tokens: int = 0


def plan_step(state: State, step: int) -> Flight | None:
    """Plans step number `step`, or returns None and changes nothing.

    None means that there is nothing to do, or that a result must be awaited first (P5.3b).
    """
    if len(state.flights) > int(state.scheduler.async_scheduling):
        return None  # P5.3a: at most one step is in flight when a plan is made
    planning = _Planning(state)
    if state.flights and not planning.can_run_ahead():
        return None
    planning.visit_running()
    if not planning.preempted:  # P2.3
        planning.admit()
    if not planning.rows and not planning.preempted:
        return None
    return planning.finish(step)


class _Planning:
    """One plan in the making."""

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

    def finish(self, step: int) -> Flight:
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

    def can_run_ahead(self) -> bool:
        """P5.3b: the free blocks suffice for every running sequence that would get tokens."""
        budget, missing = self.budget, 0
        for seq in self.state.running:
            num_tokens = self._share(seq, budget)
            budget -= num_tokens
            if num_tokens > 0:
                missing += self._missing_blocks(seq, num_tokens)
        return missing <= self.state.pool.num_free

    def visit_running(self) -> None:
        """P2.1 and P2.2."""
        for seq in list(self.state.running):
            num_tokens = self._share(seq, self.budget)
            # A sequence that an earlier visit preempted is skipped.
            if seq.status != "running" or num_tokens == 0:
                continue
            while (
                seq.status == "running"
                and self._missing_blocks(seq, num_tokens) > self.state.pool.num_free
            ):
                self._preempt(self.state.running[-1])  # P3.1
            if seq.status == "running":
                replaced = self._copy_shared(seq, num_tokens)
                new = self._append_blocks(seq, num_tokens)
                self._schedule(seq, num_tokens, new, replaced=replaced)

    def admit(self) -> None:
        """P2.3: swapped-out ones in order, then waiting ones; the first that fails ends it."""
        for seq in list(self.state.swapped):
            if not self._has_place(seq) or not self._swap_in(seq):
                return
        for seq in self.state.waiting:
            if not self._has_place(seq) or not self._admit_waiting(seq):
                return

    def _has_place(self, seq: TwinSequence) -> bool:
        running, limit = self.state.num_running, self.state.scheduler.max_num_seqs
        return self.budget > 0 and running + seq.weight <= limit

    def _share(self, seq: TwinSequence, budget: int) -> int:
        """The n of P2.1, for a running sequence and for a swapped-out one (P3.3b)."""
        knobs = self.state.scheduler
        if self.state.flights and self._awaits_result(seq):
            return 0
        behind = seq.num_planned_tokens - seq.num_planned_computed
        num_tokens = min(behind, budget, knobs.max_model_len - seq.num_planned_computed)
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
        if seq.num_placeholders == 0:
            return False
        return self.state.length_limit(seq, seq.num_planned_tokens) is not None

    def _written_shared(self, seq: TwinSequence, num_tokens: int) -> list[int]:
        """Table indices of the blocks that the step writes and others hold too (P4.5)."""
        block_size = self.state.cache.block_size
        first = seq.num_planned_computed // block_size
        end = self.state.blocks_for(seq.num_planned_computed + num_tokens)
        return [
            index
            for index in range(first, min(end, len(seq.table)))
            if self.state.pool.is_shared(seq.table[index])
        ]

    def _num_appended(self, seq: TwinSequence, num_tokens: int) -> int:
        needed = self.state.blocks_for(seq.num_planned_computed + num_tokens)
        return max(0, needed - len(seq.table))

    def _missing_blocks(self, seq: TwinSequence, num_tokens: int) -> int:
        return self._num_appended(seq, num_tokens) + len(self._written_shared(seq, num_tokens))

    def _copy_shared(self, seq: TwinSequence, num_tokens: int) -> list[tuple[int, int]]:
        """Copy-on-write (P4.5), in table order."""
        replaced = []
        for index in self._written_shared(seq, num_tokens):
            source, destination = seq.table[index], self.state.pool.take()
            self.copies.append(BlockCopy(source, destination))
            self.state.pool.release(source)
            seq.table[index] = destination
            replaced.append((index, destination))
        self.state.totals.cow_copies += len(replaced)
        return replaced

    def _append_blocks(self, seq: TwinSequence, num_tokens: int) -> list[int]:
        new = [self.state.pool.take() for _ in range(self._num_appended(seq, num_tokens))]
        seq.table.extend(new)
        return new

    def _schedule(
        self,
        seq: TwinSequence,
        num_tokens: int,
        new: list[int],
        *,
        replaced: list[tuple[int, int]] | None = None,
        num_cached_tokens: int = 0,
    ) -> None:
        start = seq.num_planned_computed
        is_introduced = seq.seq_id not in self.state.rows_valid
        row = ScheduledSequence(
            seq_id=seq.seq_id,
            num_computed_tokens=start,
            num_scheduled_tokens=num_tokens,
            # An introduction gives the whole table instead.
            new_block_ids=() if is_introduced else tuple(new),
            replaced_blocks=() if is_introduced else tuple(replaced or ()),
            samples=start + num_tokens == seq.num_planned_tokens,  # P2.7
        )
        if is_introduced:
            self._introduce(seq, num_cached_tokens)
        if not seq.group.was_scheduled:
            seq.group.was_scheduled = True
            self.new_requests.append(seq.group.request)
        seq.pending.append(row)
        self.rows.append(seq)
        self.scheduled.append(row)
        self.budget -= num_tokens

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

    def _preempt(self, victim: TwinSequence) -> None:
        wants_swap = self.state.scheduler.preemption_mode == "swap"
        # P2.8b: beams are preempted by recompute only.
        swapped = wants_swap and not victim.group.is_beam_search and self._swap_out(victim)
        self.state.pool.release_table(victim.table)
        if swapped:
            self.state.totals.preemptions_swap += 1
        else:
            victim.num_computed_tokens = 0  # P3.2
            self.state.totals.preemptions_recompute += 1
        self.state.stop(victim, swapped=swapped)
        self.preempted.append(Preemption(victim.seq_id, "swap" if swapped else "recompute"))

    def _swap_out(self, victim: TwinSequence) -> bool:
        """P3.3a; False, and nothing changed, if the host pool has no room."""
        copied = {copy.source: copy.destination for copy in self.swap_outs}
        num_entries = -(-victim.num_computed_tokens // self.state.cache.block_size)
        entries = victim.table[:num_entries]
        missing = [block for block in entries if block != NULL_BLOCK and block not in copied]
        if len(missing) > self.state.host.num_free:
            return False
        for block_id in entries:
            if block_id == NULL_BLOCK:
                victim.host_table.append(None)
            elif block_id in copied:
                self.state.host.hold(copied[block_id])
                victim.host_table.append(copied[block_id])
            else:
                host_id = self.state.host.take()
                self.swap_outs.append(BlockCopy(block_id, host_id))
                victim.host_table.append(host_id)
        return True

    def _swap_in(self, seq: TwinSequence) -> bool:
        """P3.3b; False, and nothing changed, if it does not fit."""
        pool = self.state.pool
        num_tokens = self._share(seq, self.budget)
        needed = self.state.blocks_for(seq.num_computed_tokens + num_tokens)
        needed -= seq.host_table.count(None)
        if num_tokens == 0 or pool.num_free - needed < self.state.watermark:
            return False
        for host_id in seq.host_table:
            if host_id is None:
                seq.table.append(NULL_BLOCK)
            else:
                seq.table.append(pool.take())
                self.swap_ins.append(BlockCopy(host_id, seq.table[-1]))
        new = self._append_blocks(seq, num_tokens)
        self.state.host.release_table(seq.host_table)
        self.state.start(seq)
        self._schedule(seq, num_tokens, new)
        return True

    def _admit_waiting(self, seq: TwinSequence) -> bool:
        """P2.4; False, and nothing changed, if it fits neither with a partial hit nor without."""
        hits = self._look_up(seq)
        if hits.num_partial_tokens > 0 and self._admit_with(seq, hits):
            return True
        return self._admit_with(seq, Hits(hits.full))

    def _looks_up(self, seq: TwinSequence) -> bool:
        wants_prompt_logprobs = seq.group.request.sampling_params.prompt_logprobs is not None
        return self.state.cache.enable_prefix_caching and not wants_prompt_logprobs

    def _look_up(self, seq: TwinSequence) -> Hits:
        """P2.4 and P2.4a: full hits and the best partial hit; at least one token is left."""
        if not self._looks_up(seq):
            return Hits([])
        block_size, tags = self.state.cache.block_size, self.state.tags
        most_full = (len(seq.token_ids) - 1) // block_size
        keys = prefix_keys(seq, most_full, block_size=block_size, tags=tags)
        full = self.state.pool.full_hits(keys)
        if not self.state.cache.enable_partial_hits:
            return Hits(full)
        start = len(full) * block_size
        most = min(block_size - 1, len(seq.token_ids) - 1 - start)
        source, num_partial_tokens = self.state.pool.partial_hit(
            keys[len(full) - 1].digest() if full else ROOT,
            block_extras(seq.group.request, len(full), block_size=block_size, tags=tags),
            seq.token_ids[start : start + most],
        )
        return Hits(full, source, num_partial_tokens)

    def _admit_with(self, seq: TwinSequence, hits: Hits) -> bool:
        """P2.4, P2.4c, P2.4d; False, and nothing changed, if it does not fit."""
        state, pool, knobs = self.state, self.state.pool, self.state.scheduler
        reused = hits.full + ([hits.source] if hits.num_partial_tokens > 0 else [])
        num_hits = len(hits.full) * state.cache.block_size + hits.num_partial_tokens
        behind = len(seq.token_ids) - num_hits
        num_tokens = min(behind, self.budget)
        if knobs.long_prefill_token_threshold > 0:
            num_tokens = min(num_tokens, knobs.long_prefill_token_threshold)
        if not knobs.enable_chunked_prefill and num_tokens < behind:
            return False
        needed = state.blocks_for(num_hits + num_tokens) - len(hits.full)
        if pool.num_free - pool.num_free_among(reused) - needed < state.watermark:
            return False
        for block_id in reused:
            pool.hold(block_id)
        seq.table.extend(hits.full)
        seq.num_computed_tokens = num_hits
        new = self._append_blocks(seq, num_tokens)
        if hits.num_partial_tokens > 0:
            self.pins.append(hits.source)
            self.copies.append(BlockCopy(hits.source, new[0]))
            state.totals.partial_hits += 1
        if self._looks_up(seq):
            state.totals.prefix_queries += len(seq.token_ids)
            state.totals.prefix_hit_tokens += num_hits
        state.start(seq)
        self._schedule(seq, num_tokens, new, num_cached_tokens=num_hits)
        return True
