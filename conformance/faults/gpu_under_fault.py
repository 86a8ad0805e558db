"""The GPU's runner under a fault: as model_under_fault.py, where steps are begun and not awaited.

NaN is put into the logits on the device, by a mask that stands there: the kernel that does it is
captured with the others in a CUDA graph, and a step sets the mask on the stream that the step runs
on, so that it strikes this step and no other.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.conformance.faults.model_under_fault import ModelUnderFault
from pagetwin.conformance.faults.striking import Strikes
from pagetwin.engine.gpu_runner import GpuRunner
from pagetwin.engine.request import sequence_id
from pagetwin.engine.step import PendingStep, ScheduledSequence, StepPlan


class GpuUnderFault(ModelUnderFault):
    """A SubmittingExecutor over the runner, which is this wrapper's from now on."""

    def __init__(self, runner: GpuRunner, strikes: Strikes) -> None:
        super().__init__(runner, strikes)
        self._submit = runner.submit
        self._batch = runner.batch
        self._drawing: Sequence[ScheduledSequence] = ()
        """Of the step that is being begun."""
        self._is_broken = torch.zeros(
            len(runner.batch.block_tables), dtype=torch.bool, device=runner.kv_cache.device
        )
        """[max_num_seqs], by row of a step's logits."""
        sampler = runner.device_sampler
        self._fill, self._sample = sampler.fill, sampler.sample
        sampler.fill = self._mark  # type: ignore[method-assign]
        sampler.sample = self._sample_broken  # type: ignore[method-assign]

    def submit(self, plan: StepPlan) -> PendingStep:
        with self._begun(plan):
            return self._submit(plan)

    def _begun(self, plan: StepPlan) -> AbstractContextManager[object]:
        self._drawing = [entry for entry in plan.scheduled if entry.samples]
        return super()._begun(plan)

    def _mark(
        self,
        words: NDArray[np.int32],
        rows: NDArray[np.int64],
        num_tokens: NDArray[np.int64],
        sample_indices: NDArray[np.int64] | None = None,
    ) -> None:
        """Sets the mask for a step's rows of logits, beside DeviceSampler.fill."""
        self._fill(words, rows, num_tokens, sample_indices)
        name_of = {self._batch.find_row(one.seq_id): one.seq_id for one in self._drawing}
        names = [name_of[row] for row in rows.tolist()]
        if sample_indices is not None:
            requests = (name.rpartition("/")[0] for name in names)
            names = [sequence_id(*both) for both in zip(requests, sample_indices, strict=True)]
        broken = torch.zeros(len(self._is_broken), dtype=torch.bool)
        broken[: len(names)] = torch.tensor([self._strikes.row_fails(name) for name in names])
        self._is_broken.copy_(broken)

    def _sample_broken(
        self,
        logits: Tensor,
        words: Tensor,
        token_table: Tensor,
        out: Tensor,
        failed: Tensor,
        *,
        greedy_only: bool,
    ) -> None:
        logits.masked_fill_(self._is_broken[: len(logits), None], torch.nan)
        self._sample(logits, words, token_table, out, failed, greedy_only=greedy_only)
