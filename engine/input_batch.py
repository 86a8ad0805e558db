"""The persistent batch: decides where each live sequence's tokens and blocks are kept.

An executor is told of a sequence once, then only of what changes. This is the table that the
changes are applied to, and from which a step's inputs are gathered without a Python loop over
tokens. `step_inputs.build_inputs_from_scratch` is its plain twin.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.sampler import SamplingRow
from pagetwin.engine.step import IntroducedSequence, ScheduledSequence, StepPlan
from pagetwin.engine.step_inputs import StepInputs


class RowObserver(Protocol):
    """Who keeps a copy of the rows elsewhere, and is told of each change to them."""

    def occupy(self, row: int, sampling_row: SamplingRow, token_ids: Sequence[int]) -> None:
        """The row is this sequence's now; its blocks follow."""

    def set_blocks(self, row: int, first: int, block_ids: Sequence[int]) -> None:
        """These are the row's blocks from table index `first` on."""

    def vacate(self, row: int) -> None:
        """The row is nobody's."""


class InputBatch:
    """One row for each sequence that the executor holds, in a table of fixed size.

        absent --introduced--> row --dropped--> absent
                                | introduced again: the row is written anew

    A row keeps its place while it lives, a vacated one holds zeros until it is reused; since
    inputs are gathered by row number, holes cost nothing and nothing is ever moved. A group
    that has not forked is one row. Plans are applied in order, so rows are current even when
    a plan was made before its predecessor's result was known.
    """

    def __init__(
        self,
        cache: CacheConfig,
        scheduler: SchedulerConfig,
        observers: Sequence[RowObserver] = (),
    ) -> None:
        self._observers = observers
        max_num_seqs = scheduler.max_num_seqs
        self._block_size = cache.block_size
        max_slots = scheduler.max_model_len + scheduler.num_lookahead_slots
        self._token_ids = np.zeros((max_num_seqs, scheduler.max_model_len), np.int32)
        self.block_tables = np.zeros((max_num_seqs, -(-max_slots // cache.block_size)), np.int32)
        """int32 [max_num_seqs, max_blocks], by row; 0 where a sequence has no block. Entries that
        no token sees any more (P4.7) keep what stood there."""
        self._num_tokens = np.zeros(max_num_seqs, np.int64)
        self._num_blocks = np.zeros(max_num_seqs, np.int64)
        self._sampling_rows: list[SamplingRow | None] = [None] * max_num_seqs
        # The output tokens once more, as the lists that the sampling rows show to the sampler.
        self._outputs: list[list[int]] = [[] for _ in range(max_num_seqs)]
        self._free_rows = list(reversed(range(max_num_seqs)))
        self._row_of: dict[str, int] = {}
        self._requests: dict[str, Request] = {}
        self._num_prompt_logprobs = 0

    def apply(self, plan: StepPlan) -> None:
        """Brings the rows to the state in which the plan's step runs."""
        for seq_id in plan.dropped:
            self._vacate(seq_id)
        for request_id in plan.ended_requests:
            ended = self._requests.pop(request_id)
            self._num_prompt_logprobs -= ended.sampling_params.prompt_logprobs is not None
        for request in plan.new_requests:
            self._requests[request.request_id] = request
            self._num_prompt_logprobs += request.sampling_params.prompt_logprobs is not None
        for sequence in plan.introduced:
            self._vacate(sequence.seq_id)
            self._occupy(sequence)
        for scheduled in plan.scheduled:
            self._patch_table(scheduled)

    def build_inputs(self, scheduled: Sequence[ScheduledSequence]) -> StepInputs:
        """Gathers the step's inputs; the shapes are those of StepInputs."""
        size = len(scheduled)
        rows = np.fromiter((self._row_of[s.seq_id] for s in scheduled), np.int32, size)
        starts = np.fromiter((s.num_computed_tokens for s in scheduled), np.int64, size)
        counts = np.fromiter((s.num_scheduled_tokens for s in scheduled), np.int64, size)
        query_start_loc = np.zeros(size + 1, np.int64)
        np.cumsum(counts, out=query_start_loc[1:])
        token_rows = np.repeat(rows, counts)
        positions = np.arange(query_start_loc[-1]) - np.repeat(
            query_start_loc[:-1] - starts, counts
        )
        blocks, offsets = np.divmod(positions, self._block_size)
        input_ids = self._token_ids[token_rows, positions].astype(np.int64)
        input_ids[positions >= self._num_tokens[token_rows]] = -1
        return StepInputs(
            input_ids=input_ids,
            positions=positions,
            slot_mapping=self.block_tables[token_rows, blocks].astype(np.int64) * self._block_size
            + offsets,
            query_start_loc=query_start_loc.astype(np.int32),
            seq_lens=(starts + counts).astype(np.int32),
            rows=rows,
        )

    def sampling_rows(self, seq_id: str) -> list[SamplingRow]:
        """Who draws from the sequence's logits: itself, or all samples of a group that forks.

        The rows show the sequences' own lists of output tokens, which later steps extend.
        """
        row = self.sampling_row(seq_id)
        request = row.request
        if row.output_token_ids or request.beam_search is not None:
            return [row]
        children = (
            SamplingRow(sequence_id(request.request_id, i), request, i, ())
            for i in range(1, request.num_samples)
        )
        return [row, *children]

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether some request that is remembered asks for log-probabilities of its prompt."""
        return self._num_prompt_logprobs > 0

    def sampling_row(self, seq_id: str) -> SamplingRow:
        row = self._sampling_rows[self._row_of[seq_id]]
        assert row is not None
        return row

    def find_row(self, seq_id: str) -> int | None:
        """The sequence's row; None if it has none, as a sample whose group is only now to fork."""
        return self._row_of.get(seq_id)

    def append_tokens(self, rows: Sequence[SamplingRow], sampled: Mapping[str, int]) -> None:
        """Writes the sampled tokens behind the rows' last ones.

        A new sample of a group has no row yet: it is introduced with its first token. A beam
        has no sampled token: its successors are introduced after the selection. A row that was
        vacated meanwhile gets no late token (P5.3c), whoever has it now.
        """
        extended, tokens = [], []
        for sampling_row in rows:
            seq_id = sampling_row.seq_id
            token, row = sampled.get(seq_id), self._row_of.get(seq_id)
            if token is None or row is None or self._sampling_rows[row] is not sampling_row:
                continue
            self._outputs[row].append(token)
            extended.append(row)
            tokens.append(token)
        self._token_ids[extended, self._num_tokens[extended]] = tokens
        self._num_tokens[extended] += 1

    def contents(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """By sequence id, every row's tokens and block table: what a rebuild is compared with."""
        return {
            seq_id: (
                tuple(self._token_ids[row, : self._num_tokens[row]].tolist()),
                tuple(self.block_tables[row, : self._num_blocks[row]].tolist()),
            )
            for seq_id, row in self._row_of.items()
        }

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests that are remembered, in order of arrival."""
        return tuple(self._requests)

    def check_invariants(self) -> None:
        """Recounts the table the slow way; raises AssertionError where it is inconsistent."""
        occupied = sorted(self._row_of.values())
        assert sorted(occupied + self._free_rows) == list(range(len(self._outputs)))
        assert len({id(outputs) for outputs in self._outputs}) == len(self._outputs)
        for seq_id, row in self._row_of.items():
            sampling_row = self.sampling_row(seq_id)
            request = sampling_row.request
            assert sampling_row.seq_id == seq_id
            assert seq_id == sequence_id(request.request_id, sampling_row.sample_index)
            assert request is self._requests[request.request_id]
            assert sampling_row.output_token_ids is self._outputs[row]
            known = [*request.prompt_token_ids, *self._outputs[row]]
            assert self._token_ids[row, : self._num_tokens[row]].tolist() == known
            assert not self._token_ids[row, self._num_tokens[row] :].any()
            assert not self.block_tables[row, self._num_blocks[row] :].any()
        for row in self._free_rows:
            assert not self._token_ids[row].any()
            assert not self.block_tables[row].any()
            assert self._num_tokens[row] == self._num_blocks[row] == 0
            assert self._sampling_rows[row] is None
            assert not self._outputs[row]

    def _occupy(self, sequence: IntroducedSequence) -> None:
        assert self._free_rows, "more live sequences than max_num_seqs"
        request = self._requests[sequence.request_id]
        row = self._free_rows.pop()
        self._row_of[sequence.seq_id] = row
        self._num_tokens[row] = len(sequence.token_ids)
        self._num_blocks[row] = len(sequence.block_ids)
        self._token_ids[row, : len(sequence.token_ids)] = sequence.token_ids
        self.block_tables[row, : len(sequence.block_ids)] = sequence.block_ids
        # A new list, not a cleared one: an older sampling row may still be read by a caller.
        self._outputs[row] = list(sequence.token_ids[request.num_prompt_tokens :])
        self._sampling_rows[row] = sampling_row = SamplingRow(
            sequence.seq_id, request, sequence.sample_index, self._outputs[row]
        )
        for observer in self._observers:
            observer.occupy(row, sampling_row, sequence.token_ids)
            observer.set_blocks(row, 0, sequence.block_ids)

    def _vacate(self, seq_id: str) -> None:
        if (row := self._row_of.pop(seq_id, None)) is None:
            return
        self._token_ids[row, : self._num_tokens[row]] = 0
        self.block_tables[row, : self._num_blocks[row]] = 0
        self._num_tokens[row] = self._num_blocks[row] = 0
        self._outputs[row] = []
        self._sampling_rows[row] = None
        self._free_rows.append(row)
        for observer in self._observers:
            observer.vacate(row)

    def _patch_table(self, scheduled: ScheduledSequence) -> None:
        if not (scheduled.new_block_ids or scheduled.replaced_blocks):
            return
        row = self._row_of[scheduled.seq_id]
        for index, block_id in scheduled.replaced_blocks:
            self.block_tables[row, index] = block_id
            for observer in self._observers:
                observer.set_blocks(row, index, (block_id,))
        start = self._num_blocks[row]
        self._num_blocks[row] = end = start + len(scheduled.new_block_ids)
        self.block_tables[row, start:end] = scheduled.new_block_ids
        for observer in self._observers:
            observer.set_blocks(row, int(start), scheduled.new_block_ids)
