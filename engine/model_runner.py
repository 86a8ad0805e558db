"""Decides how a planned step is run on the model: memory moves, inputs, forward pass, sampling."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend
from pagetwin.engine.attention.metadata import AttentionMetadata, ForwardContext, SampledRows
from pagetwin.engine.config import EngineConfig
from pagetwin.engine.draws import Draws
from pagetwin.engine.errors import ModelError, StepFailed
from pagetwin.engine.input_batch import InputBatch
from pagetwin.engine.kv_cache import KVCache
from pagetwin.engine.models.loader import LoadedModel
from pagetwin.engine.sampler import Sampler, SamplerOutput
from pagetwin.engine.step import StepPlan, StepResult, StepTimings, TokenLogprobs
from pagetwin.engine.step_inputs import StepInputs

# Prompt log-probabilities need a row of logits per prompt token; this many are held at once.
PROMPT_LOGITS_ROWS = 256


@contextmanager
def missing_memory_fails(plan: StepPlan) -> Iterator[None]:
    """Raises StepFailed where the device, or the host, has not the memory for the plan's step."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise StepFailed(
            f"step {plan.step}: no memory for {len(plan.scheduled)} sequences and "
            f"{plan.num_scheduled_tokens} tokens ({str(error).strip() or 'allocation failed'}); "
            "lower max_num_batched_tokens or num_blocks"
        ) from error


class ModelRunner:
    """The executor that runs a real model, on one device, in one process, step by step.

    Any device; the CPU's own, and the plain twin of engine/gpu_runner.py. Plans must come in
    order, each once. `clock` returns seconds and only feeds StepTimings.
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
        self.sampler = sampler
        """Draws the tokens; one in its place may see, or change, what it is given."""
        self._clock = clock
        self._check = config.debug_invariants
        self._without_token: Collection[str] = ()
        """Sequences that got no token in the step before, though one was to be drawn."""
        self._broken_prompts: dict[str, str] = {}
        """Requests of whose prompt some logits were no numbers, with the reason: they end with it
        when they are due a token, since before that nothing can end them (P5.1c)."""

    def warm_up(self) -> None:
        """Does what would make the first steps slow; there is nothing here."""

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Carries out the plan, in the order of docs/policy.md P4.5; it may schedule nothing.

        Raises StepFailed where the device has not the memory for it.
        """
        started = self._clock()
        self._follow(plan)
        with missing_memory_fails(plan):
            return self._carry_out(plan, started)

    def _follow(self, plan: StepPlan) -> None:
        """Before anything else: rows must follow every plan, also one that is not carried out."""
        self.batch.apply(plan)
        for request_id in plan.ended_requests:
            self._broken_prompts.pop(request_id, None)

    def _carry_out(self, plan: StepPlan, started: float) -> StepResult:
        self.kv_cache.apply(plan)
        if not plan.scheduled:
            return StepResult(step=plan.step)
        inputs = self._known(self.batch.build_inputs(plan.scheduled))
        draws = Draws.of(plan.scheduled, inputs, self.batch)
        prepared = self._clock()
        hidden = self._forward(inputs, draws)
        executed = self._clock()
        prompt_logprobs = self._prompt_logprobs(draws, hidden)
        output = self._sample(draws, hidden)
        self._without_token = output.invalid.keys()
        self.batch.append_tokens(draws.rows, output.sampled)
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

    def _known(self, inputs: StepInputs) -> StepInputs:
        """The inputs, with token 0 for one that was planned for and never came (P5.1c): its
        sequence has ended by the time this step's result counts (P5.3c)."""
        is_unknown = inputs.input_ids < 0
        if not is_unknown.any():
            return inputs
        rows = {self.batch.find_row(seq_id) for seq_id in self._without_token}
        planned = set(inputs.token_rows[is_unknown].tolist())
        assert planned <= rows, "a plan schedules tokens nobody knows"
        return replace(inputs, input_ids=np.where(is_unknown, 0, inputs.input_ids))

    def _forward(self, inputs: StepInputs, draws: Draws) -> Tensor:
        """The last hidden states of the rows that `draws` wants."""
        tables = self._to_device(self.batch.block_tables)
        sampled = None
        if draws.wanted_rows is not None:
            metadata = self._metadata(inputs.of_rows(draws.wanted_rows), tables)
            sampled = SampledRows(self._to_device(draws.wanted_rows), metadata)
        context = ForwardContext(
            self._backend, self._metadata(inputs, tables), self._kv_caches, sampled=sampled
        )
        return self._model.forward(
            self._to_device(inputs.input_ids), self._to_device(inputs.positions), context
        )

    def _metadata(self, inputs: StepInputs, block_tables: Tensor) -> AttentionMetadata:
        return AttentionMetadata(
            slot_mapping=self._to_device(inputs.slot_mapping),
            query_start_loc=self._to_device(inputs.query_start_loc),
            seq_lens=self._to_device(inputs.seq_lens),
            block_tables=block_tables,
            table_rows=self._to_device(inputs.rows),
            max_query_len=inputs.max_query_len,
            max_seq_len=inputs.max_seq_len,
        )

    def _sample(self, draws: Draws, hidden: Tensor) -> SamplerOutput:
        """Draws from the logits behind each sequence that has reached its last token (P2.7)."""
        if not draws.rows:
            return SamplerOutput()
        if draws.wants_all_rows:
            hidden = hidden[self._to_device(draws.last_tokens)]
        logits = self._model.compute_logits(hidden)
        if len(draws.rows) > len(logits):
            # The samples of a group that forks here draw from the very same logits.
            logits = logits[self._to_device(draws.logits_rows)]
        output = self.sampler.sample(logits, draws.rows)
        self._fail_broken_prompts(draws, output)
        return output

    def _fail_broken_prompts(self, draws: Draws, output: SamplerOutput) -> None:
        """No token for a request whose prompt has had broken logits."""
        for row in draws.rows if self._broken_prompts else ():
            reason = self._broken_prompts.get(row.request.request_id)
            if reason is not None:
                output.drop(row.seq_id, reason)

    def _prompt_logprobs(
        self, draws: Draws, hidden: Tensor
    ) -> dict[str, tuple[TokenLogprobs, ...]]:
        """What this step's chunks say of the prompt tokens that follow them; nothing of a chunk
        whose logits are broken."""
        results = {}
        for chunk in draws.prompt_chunks:
            entries: list[TokenLogprobs] = []
            for offset in range(0, len(chunk.targets), PROMPT_LOGITS_ROWS):
                some = chunk.targets[offset : offset + PROMPT_LOGITS_ROWS]
                first = chunk.first_row + offset
                logits = self._model.compute_logits(hidden[first : first + len(some)])
                try:
                    entries += self.sampler.prompt_logprobs(logits, some, chunk.num_logprobs)
                except ModelError as error:
                    request = self.batch.sampling_row(chunk.seq_id).request
                    self._broken_prompts[request.request_id] = str(error)
                    entries.clear()
                    break
            if entries:
                results[chunk.seq_id] = tuple(entries)
        return results

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
