"""The second half of a step: its result takes effect (docs/policy.md P5, P2.8)."""

import logging

from pagetwin.engine.scheduler_state import SchedulerState
from pagetwin.engine.sequence import Sequence, SequenceGroup, SequenceStatus
from pagetwin.engine.step import (
    BeamSelection,
    FinishedSequence,
    ScheduledSequence,
    StepPlan,
    StepResult,
    StepUpdate,
)

logger = logging.getLogger(__name__)

_STATUS_BY_REASON = {
    "stop": SequenceStatus.FINISHED_STOPPED,
    "length": SequenceStatus.FINISHED_LENGTH,
    "error": SequenceStatus.FINISHED_ERROR,
}


class Closer:
    """Closes the steps of a scheduler, in the order of P5.1b."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._block_size = state.cache.block_size
        self._finished: list[FinishedSequence] = []
        self._forked: list[tuple[str, str]] = []

    def close(self, plan: StepPlan, result: StepResult) -> StepUpdate:
        """Applies the result of the oldest step in flight.

        Raises ValueError, with nothing changed, for a result that is not that step's.
        """
        state = self._state
        self._check(plan, result)
        state.in_flight.popleft()
        self._finished, self._forked = [], []
        self._release_after(plan)
        selections = self._selections_by_place(plan, result)
        for index, entry in enumerate(plan.scheduled):
            seq = state.sequences.get(entry.seq_id)
            if seq is not None:
                self._advance(seq, entry, result, selections.get(index) if selections else None)
        if self._finished:
            state.running[:] = [seq for seq in state.running if not seq.status.is_finished]
        return StepUpdate(
            step=plan.step, finished=tuple(self._finished), forked=tuple(self._forked)
        )

    def _check(self, plan: StepPlan, result: StepResult) -> None:
        in_flight = self._state.in_flight
        if not in_flight or in_flight[0] is not plan or result.step != plan.step:
            expected = in_flight[0].step if in_flight else None
            raise ValueError(
                f"update with plan {plan.step} and result {result.step}; the oldest step in "
                f"flight is {expected}: results take effect once, in the order of their plans"
            )

    def _release_after(self, plan: StepPlan) -> None:
        """Frees what only this step held: ended sequences' blocks, then copies' sources."""
        state = self._state
        if state.deferred:
            for entry in plan.scheduled:
                seq = state.deferred.get(entry.seq_id)
                if seq is not None and seq.last_step == plan.step:
                    del state.deferred[entry.seq_id]
                    state.blocks.free(entry.seq_id)
        for block_id in state.copy_sources.pop(plan.step, ()):
            state.blocks.unpin(block_id)

    def _selections_by_place(self, plan: StepPlan, result: StepResult) -> dict[int, BeamSelection]:
        """Each live selection, by the place of its group's last scheduled sequence (P2.8b)."""
        if not result.selections:
            return {}
        places: dict[str, int] = {}
        for index, entry in enumerate(plan.scheduled):
            seq = self._state.sequences.get(entry.seq_id)
            if seq is not None:
                places[seq.group.request.request_id] = index
        return {
            places[selection.request_id]: selection
            for selection in result.selections
            if selection.request_id in places
        }

    def _advance(
        self,
        seq: Sequence,
        entry: ScheduledSequence,
        result: StepResult,
        selection: BeamSelection | None,
    ) -> None:
        state = self._state
        start = entry.num_computed_tokens
        computed = start + entry.num_scheduled_tokens
        if computed // self._block_size > start // self._block_size:
            state.blocks.mark_computed(seq.seq_id, seq.keys, seq.token_ids, computed)
        if selection is not None:
            samples = self._select(selection)
        elif entry.samples and seq.is_beam and seq.seq_id in result.failed:
            samples = self._fail_beams(seq.group, result.failed[seq.seq_id])
        elif not entry.samples or seq.is_beam:
            samples = [seq]
        elif seq.group.forked:
            samples = [seq]
            seq.num_placeholders -= 1
            self._append(seq, result)
        else:
            self._fork(seq)
            samples = list(seq.group.sequences)
            for sample in samples:
                self._append(sample, result)
        if state.cache.sliding_window:
            for sample in samples:
                if not sample.status.is_finished:
                    state.blocks.release_outside_window(sample.seq_id, computed)

    def _append(self, seq: Sequence, result: StepResult) -> None:
        seq_id = seq.seq_id
        if seq_id in result.failed:
            self._finish(seq, FinishedSequence(seq_id, "error", result.failed[seq_id]))
            return
        seq.token_ids.append(result.sampled[seq_id])
        stop = self._state.stop_conditions.check(seq, result.stop_strings.get(seq_id))
        if stop is not None:
            self._finish(seq, FinishedSequence(seq_id, *stop))

    def _fork(self, parent: Sequence) -> None:
        """Splits a group whose prompt is complete into its samples (P2.8)."""
        state = self._state
        group = parent.group
        children = [
            parent.fork(index, state.cache) for index in range(1, group.request.num_samples)
        ]
        group.forked = True
        group.sequences.extend(children)
        for child in children:
            state.blocks.fork(parent.seq_id, child.seq_id)
            state.sequences[child.seq_id] = child
            self._forked.append((parent.seq_id, child.seq_id))
        place = state.running.index(parent) + 1
        state.running[place:place] = children

    def _finish(self, seq: Sequence, finished: FinishedSequence) -> None:
        state = self._state
        if finished.reason == "length" and state.stop_conditions.is_capped_by_pool(seq):
            logger.warning(
                "%s ends after %d tokens: the KV pool of %d blocks of %d tokens holds no more of "
                "one sequence; raise cache.num_blocks",
                seq.seq_id,
                len(seq.token_ids),
                state.cache.num_blocks - 1,
                state.cache.block_size,
            )
        state.end(seq, _STATUS_BY_REASON[finished.reason])
        state.forget_if_ended(seq.group)
        state.totals.finished += 1
        self._finished.append(finished)

    def _select(self, selection: BeamSelection) -> list[Sequence]:
        """Replaces a group's beams by the selected ones, which it returns (P2.8b)."""
        state = self._state
        group = state.groups[selection.request_id]
        old = group.sequences
        self._check_selection(selection, group)
        if selection.finished:
            for beam in old:
                self._finish(beam, FinishedSequence(beam.seq_id, "stop"))
            return old
        new = [
            old[parent].fork(index, state.cache) for index, parent in enumerate(selection.parents)
        ]
        for beam, parent in zip(new, selection.parents, strict=True):
            state.blocks.fork(old[parent].seq_id, _temporary_id(beam))
        for beam in old:
            state.blocks.free(beam.seq_id)
        for beam, token_id in zip(new, selection.token_ids, strict=True):
            state.blocks.rename(_temporary_id(beam), beam.seq_id)
            state.sequences[beam.seq_id] = beam
            beam.token_ids.append(token_id)
        for before, after in zip(old, new, strict=False):
            after.has_row = before.has_row
        group.forked = True
        group.sequences = new
        self._stand_in(new, old)
        return new

    def _stand_in(self, new: list[Sequence], old: list[Sequence]) -> None:
        """Puts the new beams where old beam 0 stands among the running; the old ones leave."""
        running = self._state.running
        first = running.index(old[0])
        before = [seq for seq in running[:first] if seq.group is not old[0].group]
        after = [seq for seq in running[first:] if seq.group is not old[0].group]
        running[:] = [*before, *new, *after]

    def _fail_beams(self, group: SequenceGroup, reason: str) -> list[Sequence]:
        """Ends a beam search one of whose beams cannot go on (P5.1c)."""
        for beam in group.sequences:
            if beam.status is not SequenceStatus.RUNNING:
                self._state.leave_line(beam)
            self._finish(beam, FinishedSequence(beam.seq_id, "error", reason))
        return group.sequences

    @staticmethod
    def _check_selection(selection: BeamSelection, group: SequenceGroup) -> None:
        late = [
            beam.seq_id
            for beam in group.sequences
            if beam.status is not SequenceStatus.RUNNING
            or beam.num_computed_tokens != beam.num_tokens
        ]
        assert not late, f"selection for {selection.request_id} before {late} were computed"


def _temporary_id(beam: Sequence) -> str:
    return f"{beam.seq_id}/next"
