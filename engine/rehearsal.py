"""Steps of nobody's tokens: what a runner compiles, measures and captures before the first one."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagetwin.engine.device_sampler import DeviceSampler
from pagetwin.engine.step_inputs import dummy_chunks, pad_decodes
from pagetwin.engine.step_program import Arrays, StepProgram, StepShape


class RehearsedStep(NamedTuple):
    """What is sent, and what is launched on it."""

    arrays: Arrays
    shape: StepShape


class Rehearsal:
    """Makes steps of any size. They write no slot, and no sequence's tokens.

    `block_tables` are the host's, [max_num_seqs, max_blocks]; whatever stands in them is read.
    """

    def __init__(
        self,
        program: StepProgram,
        sampler: DeviceSampler,
        block_tables: NDArray[np.int32],
        max_model_len: int,
    ) -> None:
        self._program = program
        self._sampler = sampler
        self._block_tables = block_tables
        self._max_model_len = max_model_len

    def decodes(self, size: int) -> RehearsedStep:
        """As a graph has it: `size` sequences of one token that draw one."""
        inputs = pad_decodes(dummy_chunks(np.zeros(0, np.int64)), size)
        inputs = replace(inputs, seq_lens=np.ones(size, np.int32))
        words = self._nobodys_words(size)
        return RehearsedStep(
            self._program.arrays(inputs, self._block_tables, None, words, is_graph=True),
            StepShape(1, self._max_model_len, num_draws=size, is_graph=True),
        )

    def prefill(self, num_tokens: int) -> RehearsedStep:
        """So many tokens of prompts as long as can be, and as many draws as can be."""
        lens = np.full(-(-num_tokens // self._max_model_len), self._max_model_len)
        lens[-1] = num_tokens - self._max_model_len * (len(lens) - 1)
        inputs = dummy_chunks(lens)
        num_draws = min(num_tokens, len(self._block_tables))
        wanted, words = np.arange(num_draws), self._nobodys_words(num_draws)
        return RehearsedStep(
            self._program.arrays(inputs, self._block_tables, wanted, words, is_graph=False),
            StepShape(inputs.max_query_len, inputs.max_seq_len, num_draws, is_graph=False),
        )

    def _nobodys_words(self, num_draws: int) -> NDArray[np.int32]:
        words = np.zeros((self._sampler.num_words, num_draws), np.int32)
        nobody = np.zeros(0, np.int64)
        self._sampler.fill(words, nobody, nobody)
        return words
