"""Which rows of a step's hidden states are wanted, and who draws tokens from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pagetwin.engine.input_batch import InputBatch
from pagetwin.engine.sampler import SamplingRow
from pagetwin.engine.step import ScheduledSequence
from pagetwin.engine.step_inputs import StepInputs


class PromptChunk(NamedTuple):
    """Prompt tokens whose log-probabilities are asked for, as far as this step's rows tell them."""

    seq_id: str
    first_row: int
    """The row whose hidden state tells of the first target."""
    targets: tuple[int, ...]
    num_logprobs: int


@dataclass(frozen=True)
class Draws:
    """What a step's sequences draw, in the order of the plan (docs/policy.md P2.7)."""

    last_tokens: NDArray[np.int64]
    """[num_sampled_seqs]: the row of the last token of each sequence that samples."""
    sequences: NDArray[np.int64]
    """[num_sampled_seqs]: which of the step's sequences these are."""
    rows: list[SamplingRow]
    """Who draws: a sequence, or all samples of a group that forks here, one after the other."""
    logits_rows: NDArray[np.int64]
    """[len(rows)]: whose logits each draws from, as an index of `last_tokens`."""
    prompt_chunks: list[PromptChunk]
    num_tokens: int
    """Of the step."""

    @property
    def wants_all_rows(self) -> bool:
        """Whether hidden states are wanted of more rows than `last_tokens`."""
        return bool(self.prompt_chunks)

    @property
    def wanted_rows(self) -> NDArray[np.int64] | None:
        """The rows whose hidden states are wanted; None if that is all of them."""
        every = self.wants_all_rows or len(self.last_tokens) == self.num_tokens
        return None if every else self.last_tokens

    @property
    def forks(self) -> bool:
        return len(self.rows) > len(self.last_tokens)

    @classmethod
    def of(
        cls, scheduled: Sequence[ScheduledSequence], inputs: StepInputs, batch: InputBatch
    ) -> Self:
        sequences = [index for index, sequence in enumerate(scheduled) if sequence.samples]
        drawing = [batch.sampling_rows(scheduled[index].seq_id) for index in sequences]
        index = np.array(sequences, np.int64)
        return cls(
            last_tokens=inputs.query_start_loc[index + 1].astype(np.int64) - 1,
            sequences=index,
            rows=[row for rows in drawing for row in rows],
            logits_rows=np.repeat(np.arange(len(drawing)), [len(rows) for rows in drawing]),
            prompt_chunks=_prompt_chunks(scheduled, inputs, batch),
            num_tokens=inputs.num_tokens,
        )


def _prompt_chunks(
    scheduled: Sequence[ScheduledSequence], inputs: StepInputs, batch: InputBatch
) -> list[PromptChunk]:
    """A sequence that has output tokens has told it all before it was preempted or forked; so has
    one that computes its prompt's last token or, its first draw still unknown, what follows it."""
    if not batch.wants_prompt_logprobs:
        return []
    chunks = []
    for index, sequence in enumerate(scheduled):
        row = batch.sampling_row(sequence.seq_id)
        wanted = row.request.sampling_params.prompt_logprobs
        if wanted is None or row.output_token_ids:
            continue
        first = sequence.num_computed_tokens + 1
        targets = row.request.prompt_token_ids[first : first + sequence.num_scheduled_tokens]
        if targets:
            start = int(inputs.query_start_loc[index])
            chunks.append(PromptChunk(sequence.seq_id, start, targets, wanted))
    return chunks
