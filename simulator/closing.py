"""Decides what a step's result changes: docs/policy.md P4.6, P4.7, P5.1 and P2.8b."""

import logging

from pagetwin.engine.step import (
    BeamSelection,
    FinishedSequence,
    ScheduledSequence,
    StepResult,
    StepUpdate,
)
from pagetwin.simulator.decoding import decodes_until
from pagetwin.simulator.memory import NULL_BLOCK
from pagetwin.simulator.sequence import TwinGroup, TwinSequence, prefix_keys
from pagetwin.simulator.state import Flight, State

logger = logging.getLogger(__name__)


def close_step(state: State, flight: Flight, result: StepResult) -> StepUpdate:
    """Applies the result of the oldest step in flight, in the order of P5.1b."""
    last_beams: dict[TwinGroup, TwinSequence] = {}
    for seq, row in zip(flight.rows, flight.plan.scheduled, strict=True):
        seq.num_computed_tokens = row.num_computed_tokens + row.num_scheduled_tokens
        if seq.status == "ended":
            if not seq.is_in_flight:  # P5.3c: the last step that used its blocks is over
                state.pool.release_table(seq.table)
        elif seq.group.is_beam_search:
            last_beams[seq.group] = seq
    for block_id in flight.pins:
        state.pool.release(block_id)
    closing = _Closing(state, result)
    sampled, only_tokens = result.sampled, not (result.failed or result.stop_strings)
    block_size = state.cache.block_size
    for seq, row in zip(flight.rows, flight.plan.scheduled, strict=True):
        if seq.status == "ended":
            continue  # before this step was over, or with a beam that failed at an earlier row
        if seq.num_computed_tokens <= seq.decodes_until:  # no fork, no limit, no window
            if seq.num_computed_tokens % block_size == 0:
                closing.cache_filled(seq, row)
            token_id = sampled.get(seq.seq_id)  # checked here, to save most rows a call
            if only_tokens and token_id is not None and token_id not in seq.group.stop_ids:
                seq.token_ids.append(token_id)
            else:
                closing.append_sampled(seq)
        else:
            closing.close_row(seq, row, is_last=last_beams.get(seq.group) is seq)
            seq.decodes_until = decodes_until(state, seq) if seq.status == "running" else 0
    return StepUpdate(
        step=flight.plan.step, finished=tuple(closing.finished), forked=tuple(closing.forked)
    )


class _Closing:
    """One update in the making."""

    def __init__(self, state: State, result: StepResult) -> None:
        self.state = state
        self.result = result
        self.finished: list[FinishedSequence] = []
        self.forked: list[tuple[str, str]] = []

    def close_row(self, seq: TwinSequence, row: ScheduledSequence, *, is_last: bool) -> None:
        """Closes one scheduled sequence; `is_last`: it is the last of its beams in the plan."""
        self.cache_filled(seq, row)
        members = [seq]
        if seq.group.is_beam_search:
            if row.samples and seq.seq_id in self.result.failed:
                for beam in seq.group.live:
                    self._fail(beam, self.result.failed[seq.seq_id])
            elif is_last and self._all_beams_computed(seq.group):
                members = self._select(seq.group)
        elif row.samples:
            if seq.group.will_split():
                members = self._fork(seq)
            for member in members:
                self.append_sampled(member)
        if self.state.cache.sliding_window > 0:
            for member in members:
                if member.status != "ended":
                    self._release_window(member)

    def cache_filled(self, seq: TwinSequence, row: ScheduledSequence) -> None:
        """The blocks that the step has filled enter the cache in table order (P4.6)."""
        block_size = self.state.cache.block_size
        first = row.num_computed_tokens // block_size
        end = seq.num_computed_tokens // block_size
        if end > first and self.state.cache.enable_prefix_caching:
            keys = prefix_keys(seq, end, block_size=block_size, tags=self.state.tags)
            for index in range(first, end):
                self.state.pool.cache(seq.table[index], keys[index])

    def _fork(self, seq: TwinSequence) -> list[TwinSequence]:
        """P2.8: the others stand in running directly behind sample 0."""
        children = [self._copy_of(seq, index) for index in range(1, seq.group.request.num_samples)]
        seq.group.sequences.extend(children)
        seq.group.has_split = True
        place = self.state.running.index(seq) + 1
        self.state.running[place:place] = children
        self.forked.extend((seq.seq_id, child.seq_id) for child in children)
        return [seq, *children]

    def _copy_of(self, seq: TwinSequence, sample_index: int) -> TwinSequence:
        return TwinSequence(
            group=seq.group,
            sample_index=sample_index,
            token_ids=list(seq.token_ids),
            num_computed_tokens=seq.num_computed_tokens,
            table=self.state.pool.fork(seq.table),
            status="running",
            keys=list(seq.keys),
        )

    def append_sampled(self, seq: TwinSequence) -> None:
        """P5.1: the token is appended, then the stop conditions are checked in order."""
        seq_id, group, result = seq.seq_id, seq.group, self.result
        if seq_id in result.failed:
            self._fail(seq, result.failed[seq_id])
            return
        token_id = result.sampled.get(seq_id)
        if token_id is None:
            raise ValueError(
                f"the result of step {result.step} has no token for {seq_id}, which the plan marks "
                "with `samples`; the executor must return one"
            )
        seq.token_ids.append(token_id)
        is_at_cap = len(seq.token_ids) >= group.length_cap
        if is_at_cap or token_id in group.stop_ids or seq_id in result.stop_strings:
            ending = self._ending(seq, token_id)
            if ending is not None:
                self._finish(seq, ending)

    def _ending(self, seq: TwinSequence, token_id: int) -> FinishedSequence | None:
        request, num_tokens = seq.group.request, len(seq.token_ids)
        params = request.sampling_params
        if num_tokens - seq.group.num_prompt_tokens > params.min_tokens:  # P5.1a
            if not params.ignore_eos and token_id in request.eos_token_ids:
                return FinishedSequence(seq.seq_id, "stop")
            if token_id in params.stop_token_ids:
                return FinishedSequence(seq.seq_id, "stop", token_id)
            if seq.seq_id in self.result.stop_strings:
                return FinishedSequence(seq.seq_id, "stop", self.result.stop_strings[seq.seq_id])
        limit = self.state.length_limit(seq, num_tokens)
        if limit is None:
            return None
        if limit == "pool":
            logger.warning(
                "%s ends at %d tokens: cache.num_blocks=%d cannot hold more; raise it",
                seq.seq_id,
                num_tokens,
                self.state.cache.num_blocks,
            )
        return FinishedSequence(seq.seq_id, "length")

    def _fail(self, seq: TwinSequence, reason: str) -> None:
        """P5.1c: it ends without a token."""
        self._finish(seq, FinishedSequence(seq.seq_id, "error", reason))

    def _finish(self, seq: TwinSequence, ending: FinishedSequence) -> None:
        self.finished.append(ending)
        self.state.totals.finished += 1
        self.state.end(seq)

    def _all_beams_computed(self, group: TwinGroup) -> bool:
        """P2.8a: every live beam is running with behind = 0, so the result selects."""
        return group.is_running and all(beam.rests for beam in group.live)

    def _select(self, group: TwinGroup) -> list[TwinSequence]:
        """P2.8b; returns the beams that the group has now."""
        selection = self._selection_of(group)
        old = group.sequences
        if selection.finished:
            for beam in list(old):
                self._finish(beam, FinishedSequence(beam.seq_id, "stop"))
            return []
        beams = [self._copy_of(old[parent], i) for i, parent in enumerate(selection.parents)]
        running = self.state.running
        place = running.index(old[0]) - sum(b in old for b in running[: running.index(old[0])])
        for beam in old:
            self.state.pool.release_table(beam.table)
            running.remove(beam)
            beam.status = "ended"
        for beam, token_id in zip(beams, selection.token_ids, strict=True):
            beam.token_ids.append(token_id)
            self.state.rows_valid.discard(beam.seq_id)
        running[place:place] = beams
        group.sequences = beams
        group.has_split = True
        return beams

    def _selection_of(self, group: TwinGroup) -> BeamSelection:
        request_id = group.request.request_id
        for selection in self.result.selections:
            if selection.request_id == request_id:
                return selection
        raise ValueError(
            f"the result of step {self.result.step} has no selection for {request_id!r}, all of "
            "whose beams are computed; the executor must return one"
        )

    def _release_window(self, seq: TwinSequence) -> None:
        """P4.7: entries wholly outside the window become null, front first."""
        window = self.state.cache.sliding_window
        num_outside = max(0, seq.num_computed_tokens - window + 1) // self.state.cache.block_size
        for index in range(min(num_outside, len(seq.table))):
            if seq.table[index] != NULL_BLOCK:
                self.state.pool.release(seq.table[index])
                seq.table[index] = NULL_BLOCK
