"""A model runner under a fault: its memory, or the logits of some rows, fail when it is time.

Nothing in the runner knows of it: it meets a MemoryError where blocks are moved, a tensor that gets
no memory, or numbers that are none where tokens are drawn, as it would on a device that fails.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pagetwin.conformance.faults.failing_allocation import FailingAllocation
from pagetwin.conformance.faults.striking import Strikes
from pagetwin.engine.model_runner import ModelRunner
from pagetwin.engine.sampler import Sampler, SamplerOutput, SamplingRow
from pagetwin.engine.step import StepPlan, StepResult, SubmittingExecutor


def under_fault(runner: ModelRunner, strikes: Strikes) -> "ModelUnderFault":
    """The runner as an executor that fails when it is time; before the runner's warm-up, since what
    is captured there is what runs."""
    if not isinstance(runner, SubmittingExecutor):
        return ModelUnderFault(runner, strikes)
    # Imported where there is such a runner, so that a CPU needs no Triton.
    from pagetwin.conformance.faults.gpu_under_fault import GpuUnderFault
    from pagetwin.engine.gpu_runner import GpuRunner

    assert isinstance(runner, GpuRunner), f"{type(runner).__name__} is not known here"
    return GpuUnderFault(runner, strikes)


class ModelUnderFault:
    """Executes plans on the runner, which is this wrapper's from now on."""

    def __init__(self, runner: ModelRunner, strikes: Strikes) -> None:
        self._runner = runner
        self._strikes = strikes
        self._is_out_of_memory = False
        self._move = runner.kv_cache.apply
        runner.kv_cache.apply = self._apply  # type: ignore[method-assign]
        runner.sampler = _BrokenLogits(runner.sampler, strikes)

    def execute(self, plan: StepPlan) -> StepResult:
        with self._begun(plan):
            return self._runner.execute(plan)

    def _begun(self, plan: StepPlan) -> AbstractContextManager[object]:
        """What the plan is to be executed in."""
        self._is_out_of_memory = self._strikes.begin(plan)
        number = self._strikes.failing_allocation
        if number is None:
            return nullcontext()
        return FailingAllocation(number, self._strikes.refuse_memory)

    def _apply(self, plan: StepPlan) -> None:
        if self._is_out_of_memory:
            raise MemoryError("made to fail")
        self._move(plan)


class _BrokenLogits(Sampler):
    """Sees NaN in place of the logits of rows that are to fail."""

    def __init__(self, sampler: Sampler, strikes: Strikes) -> None:
        super().__init__(sampler.vocab_size, seed=sampler.seed)
        self._strikes = strikes

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> SamplerOutput:
        broken = [i for i, row in enumerate(rows) if self._strikes.row_fails(row.seq_id)]
        if broken:
            logits = logits.clone()
            logits[broken] = torch.nan
        return super().sample(logits, rows)
