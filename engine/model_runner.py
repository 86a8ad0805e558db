"""Decides how a planned step is run on the model: memory moves, inputs, forward pass, sampling."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend
from pagetwin.engine.attention.metadata import AttentionMetadata, ForwardContext
from pagetwin.engine.config import EngineConfig
from pagetwin.engine.input_batch import InputBatch
from pagetwin.engine.kv_cache import KVCache
from pagetwin.engine.models.loader import LoadedModel
from pagetwin.engine.sampler import Sampler, SamplerOutput, SamplingRow
from pagetwin.engine.step import (
    ScheduledSequence,
    StepPlan,
    StepResult,
    StepTimings,
    TokenLogprobs,
)
from pagetwin.engine.step_inputs import StepInputs

# Prompt log-probabilities need a row of logits per prompt token; this many are held at once.
PROMPT_LOGITS_ROWS = 256


class ModelRunner:
    """The executor that runs a real model, on one device, in one process.

    Plans must come in order, each once. `clock` returns seconds and only feeds StepTimings: on
    a GPU, whose work is queued, execute_s is the time to launch it and sample_s holds the wait.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        backend: AttentionBackend,
        config: EngineConfig,
        *,
        kv_cache: KVCache,
        sampler: Sampler,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.kv_cache = kv_cache
        self.batch = InputBatch(config.cache, config.scheduler)
        self._model = loaded.model
        self._device = kv_cache.device_pool.device
        self._kv_caches = kv_cache.layers
        self._backend = backend
        self._sampler = sampler
        self._clock = clock
        self._check = config.debug_invariants

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Carries out the plan, in the order of docs/policy.md P4.5; it may schedule nothing."""
        started = self._clock()
        self.kv_cache.apply(plan)
        self.batch.apply(plan)
        if not plan.scheduled:
            return StepResult(step=plan.step)
        inputs = self.batch.build_inputs(plan.scheduled)
        prepared = self._clock()
        hidden = self._forward(inputs)
        executed = self._clock()
        prompt_logprobs = self._prompt_logprobs(plan.scheduled, inputs, hidden)
        rows, output = self._sample(plan.scheduled, inputs, hidden)
        self.batch.append_tokens(rows, output.sampled)
        if self._check:
            self.batch.check_invariants()
        return StepResult(
            step=plan.step,
            sampled=output.sampled,
            failed=output.invalid,
            logprobs=output.logprobs,
            prompt_logprobs=prompt_logprobs,
            timings=StepTimings(
                prepare_s=prepared - started,
                execute_s=executed - prepared,
                sample_s=self._clock() - executed,
            ),
        )

    def _forward(self, inputs: StepInputs) -> Tensor:
        """The last hidden states, [num_tokens, hidden_size]."""
        metadata = AttentionMetadata(
            slot_mapping=self._to_device(inputs.slot_mapping),
            query_start_loc=self._to_device(inputs.query_start_loc),
            seq_lens=self._to_device(inputs.seq_lens),
            block_tables=self._to_device(inputs.block_tables),
            max_query_len=inputs.max_query_len,
            max_seq_len=inputs.max_seq_len,
        )
        context = ForwardContext(self._backend, metadata, self._kv_caches)
        return self._model.forward(
            self._to_device(inputs.input_ids), self._to_device(inputs.positions), context
        )

    def _sample(
        self, scheduled: Sequence[ScheduledSequence], inputs: StepInputs, hidden: Tensor
    ) -> tuple[list[SamplingRow], SamplerOutput]:
        """Draws from the logits behind each sequence that has reached its last token (P2.7)."""
        last_tokens: list[int] = []
        rows: list[SamplingRow] = []
        logits_rows: list[int] = []
        for index, sequence in enumerate(scheduled):
            if not sequence.samples:
                continue
            drawing = self.batch.sampling_rows(sequence.seq_id)
            logits_rows += [len(last_tokens)] * len(drawing)
            rows += drawing
            last_tokens.append(int(inputs.query_start_loc[index + 1]) - 1)
        if not rows:
            return [], SamplerOutput()
        logits = self._model.compute_logits(hidden[self._to_device(np.array(last_tokens))])
        if len(rows) > len(last_tokens):
            # The samples of a group that forks here draw from the very same logits.
            logits = logits[self._to_device(np.array(logits_rows))]
        return rows, self._sampler.sample(logits, rows)

    def _prompt_logprobs(
        self, scheduled: Sequence[ScheduledSequence], inputs: StepInputs, hidden: Tensor
    ) -> dict[str, tuple[TokenLogprobs, ...]]:
        """What this step's chunks say of the prompt tokens that follow, where they are asked for.

        A sequence that has output tokens has told it all before it was preempted or forked.
        """
        results = {}
        for index, sequence in enumerate(scheduled):
            row = self.batch.sampling_row(sequence.seq_id)
            wanted = row.request.sampling_params.prompt_logprobs
            if wanted is None or row.output_token_ids:
                continue
            first = sequence.num_computed_tokens + 1
            targets = row.request.prompt_token_ids[first : first + sequence.num_scheduled_tokens]
            start = int(inputs.query_start_loc[index])
            entries: list[TokenLogprobs] = []
            for offset in range(0, len(targets), PROMPT_LOGITS_ROWS):
                some = targets[offset : offset + PROMPT_LOGITS_ROWS]
                states = hidden[start + offset : start + offset + len(some)]
                logits = self._model.compute_logits(states)
                entries += self._sampler.prompt_logprobs(logits, some, wanted)
            if entries:
                results[sequence.seq_id] = tuple(entries)
        return results

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
