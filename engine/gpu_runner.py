"""Runs planned steps on a GPU without waiting for them: CUDA graphs, one step in flight.

engine/model_runner.py is the plain twin: the same tokens, step by step.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend
from pagetwin.engine.config import EngineConfig
from pagetwin.engine.cuda_graphs import (
    VARIANTS,
    CudaGraphs,
    Dispatcher,
    Route,
    Variant,
    graph_sizes,
)
from pagetwin.engine.device_sampler import DeviceSampler
from pagetwin.engine.device_tables import DeviceTables
from pagetwin.engine.draws import Draws
from pagetwin.engine.garbage import leave_imports_out_of_collections
from pagetwin.engine.input_batch import InputBatch
from pagetwin.engine.kv_cache import KVCache
from pagetwin.engine.model_runner import ModelRunner, missing_memory_fails
from pagetwin.engine.models.loader import LoadedModel
from pagetwin.engine.rehearsal import Rehearsal, RehearsedStep
from pagetwin.engine.sampler import Sampler, SamplerOutput, SamplingRow
from pagetwin.engine.staging import StagingBuffer
from pagetwin.engine.step import (
    DoneStep,
    PendingStep,
    StepPlan,
    StepResult,
    StepTimings,
    TokenLogprobs,
)
from pagetwin.engine.step_inputs import StepInputs, pad_decodes
from pagetwin.engine.step_program import Arrays, StepProgram, StepShape
from pagetwin.engine.step_slot import StepSlot
from pagetwin.kernels.compile_ahead import compile_ahead

BROKEN_LOGITS = "its logits hold NaN, +inf or no finite number"
PATCH_BYTES = 2**16
"""Room for changed block tables beside the inputs of a graph."""


class _RunningStep:
    """A step that the device works on; `finish` waits for it and makes its result, once."""

    def __init__(self, finish: Callable[[], StepResult]) -> None:
        self._finish = finish
        self._result: StepResult | None = None

    def result(self) -> StepResult:
        if self._result is None:
            self._result = self._finish()
        return self._result


@dataclass(frozen=True)
class _Launch:
    """How one step is run, and what its result needs."""

    draws: Draws
    route: Route
    variant: Variant
    host_reason: str | None
    """Why the host draws the tokens; None if the device does."""
    num_draws: int
    """Rows of logits, padding included."""


class GpuRunner(ModelRunner):
    """The executor that begins a step and goes on.

    A step's inputs go to the device in one copy, its drawn tokens come back in another, and the
    host waits for nothing else. What the device draws it also writes to its own table of tokens,
    so that the next step can be launched before the host knows them. A step in which the host
    draws (engine/device_sampler.py says for which requests) waits for the one before.
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
        leave_imports_out_of_collections()
        super().__init__(loaded, backend, config, kv_cache=kv_cache, sampler=sampler, clock=clock)
        scheduler, device = config.scheduler, self._device
        num_seqs, max_blocks = self.batch.block_tables.shape
        self._tables = DeviceTables(num_seqs, scheduler.max_model_len, max_blocks, device)
        self.device_sampler = DeviceSampler(
            loaded.spec.vocab_size, num_seqs, device, seed=sampler.seed
        )
        """Draws the tokens that `sampler` does not; like that, it may be stepped in front of."""
        self.batch = InputBatch(
            config.cache, scheduler, observers=(self._tables, _SamplerRows(self.device_sampler))
        )
        self._program = StepProgram(
            loaded.model,
            backend,
            self._kv_caches,
            self._tables,
            self.device_sampler,
            is_batch_invariant=config.batch_invariant,
        )
        self._slots = deque(StepSlot(num_seqs, device) for _ in range(2))
        self._in_flight: deque[PendingStep] = deque()
        self._staging = StagingBuffer(2**20, device)
        self._graph_staging = StagingBuffer(0, device)
        self._graphs = CudaGraphs()
        self._why_no_graphs = ""
        if config.enforce_eager:
            self._why_no_graphs = "graphs are off (enforce_eager)"
        elif device.type != "cuda":
            self._why_no_graphs = f"there are no graphs on {device.type!r}"
        elif not backend.is_capturable:
            self._why_no_graphs = f"attention backend {backend.name!r} cannot run in a graph"
        self._rehearsal = Rehearsal(
            self._program,
            self.device_sampler,
            self.batch.block_tables,
            scheduler.max_model_len,
        )
        self._max_num_tokens = scheduler.max_num_batched_tokens
        self.dispatcher = Dispatcher()

    def execute(self, plan: StepPlan) -> StepResult:
        return self.submit(plan).result()

    @torch.inference_mode()
    def submit(self, plan: StepPlan) -> PendingStep:
        """Begins to carry out the plan, in the order of docs/policy.md P4.5.

        Raises StepFailed where the device has not the memory for it.
        """
        started = self._clock()
        while len(self._in_flight) >= len(self._slots):
            self._in_flight.popleft().result()
        self._follow(plan)
        with missing_memory_fails(plan):
            return self._begin(plan, started)

    def _begin(self, plan: StepPlan, started: float) -> PendingStep:
        self.kv_cache.apply(plan)
        if not plan.scheduled:
            return DoneStep(StepResult(step=plan.step))
        slot = self._slots[0]
        self._slots.rotate(-1)
        inputs = self.batch.build_inputs(plan.scheduled)
        launch = self._plan_launch(Draws.of(plan.scheduled, inputs, self.batch), inputs)
        arrays = self._arrays(inputs, launch)
        prepared = self._clock()
        slot.begin()
        hidden = self._run(arrays, inputs, launch)
        host_output = self._draw_by_host(launch, hidden) if launch.host_reason else None
        slot.end(None if host_output else self._program.drawn)
        launched = self._clock()
        timings = StepTimings(
            prepare_s=prepared - started,
            execute_s=launched - prepared,
            graph_size=launch.route.size,
            eager_reason=launch.route.reason,
        )
        running = _RunningStep(lambda: self._finish(plan, launch, slot, timings, host_output))
        self._in_flight.append(running)
        return running

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compiles what steps launch, and captures the graphs; before the first step."""
        self.compile()
        self.kv_cache.rehearse()
        for num_tokens in _powers_of_two(self._max_num_tokens):
            self.rehearse_prefill(num_tokens)
        if self._why_no_graphs:
            self.dispatcher.why_none = self._why_no_graphs
            return
        sizes = graph_sizes(len(self.batch.block_tables))
        largest = self._rehearsal.decodes(sizes[-1]).arrays
        num_bytes = StagingBuffer.num_bytes_for(largest) + PATCH_BYTES
        self._graph_staging = StagingBuffer(num_bytes, self._device)
        for size in reversed(sizes):
            self._capture(size)
        self.dispatcher.sizes = sizes

    @torch.inference_mode()
    def compile(self) -> None:
        """Compiles the kernels of steps of all sizes, side by side."""
        with compile_ahead():
            self.kv_cache.rehearse()
            for num_tokens in _powers_of_two(self._max_num_tokens):
                self.rehearse_prefill(num_tokens)
            for size in graph_sizes(len(self.batch.block_tables)):
                self._rehearse(self._rehearsal.decodes(size), VARIANTS)

    @torch.inference_mode()
    def rehearse_prefill(self, num_tokens: int) -> None:
        """Runs a step of so many prompt tokens, with as many draws as can be, to its end."""
        self._rehearse(self._rehearsal.prefill(num_tokens), ("random",))

    def _rehearse(self, step: RehearsedStep, variants: Sequence[Variant]) -> None:
        self._grow_staging(step.arrays)
        self._staging.send(step.arrays)
        views = self._staging.views(step.arrays)
        self._run_variants(views, step.shape, variants)
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _run_variants(
        self, views: Mapping[str, Tensor], shape: StepShape, variants: Sequence[Variant]
    ) -> None:
        """Launches the step once, and from its hidden states every way to draw."""
        hidden = self._program.run(views, shape, variants[0])
        for variant in variants[1:]:
            self._program.draw(hidden, shape.num_draws, variant, views)

    def _capture(self, size: int) -> None:
        step = self._rehearsal.decodes(size)
        self._graph_staging.send(step.arrays)
        torch.cuda.synchronize()
        views = self._graph_staging.views(step.arrays)
        # A kernel's code is loaded when it first runs, which a graph cannot do.
        self._run_variants(views, step.shape, VARIANTS)
        for variant in VARIANTS:
            run = partial(self._program.run, views, step.shape, variant)
            self._graphs.capture(size, variant, run)

    def _plan_launch(self, draws: Draws, inputs: StepInputs) -> _Launch:
        draws_once = len(draws.sequences) == inputs.num_seqs and not draws.forks
        route = self.dispatcher.route(inputs.num_seqs, inputs.num_tokens, draws_once=draws_once)
        rows, num_tokens = _drawing(draws, inputs)
        host_reason = self._host_reason(draws, rows, num_tokens)
        by_device = host_reason is None and not self.device_sampler.is_greedy(rows)
        variant: Variant = "random" if by_device else "greedy"
        return _Launch(draws, route, variant, host_reason, route.size or len(draws.rows))

    def _host_reason(
        self, draws: Draws, rows: NDArray[np.int64], num_tokens: NDArray[np.int64]
    ) -> str | None:
        """Why the host must draw this step's tokens; None if the device can."""
        if draws.wants_all_rows:
            return "log-probabilities of a prompt are asked for"
        return self.device_sampler.rejection(rows, num_tokens)

    def _arrays(self, inputs: StepInputs, launch: _Launch) -> Arrays:
        """The step's arrays; for a graph those of its size, in which every row is wanted."""
        words = np.zeros((self.device_sampler.num_words, launch.num_draws), np.int32)
        draws = launch.draws
        samples = np.array([row.sample_index for row in draws.rows]) if draws.forks else None
        self.device_sampler.fill(words, *_drawing(draws, inputs), samples)
        if launch.route.size:
            inputs = pad_decodes(inputs, launch.route.size)
        return self._program.arrays(
            inputs,
            self.batch.block_tables,
            None if launch.route.size else draws.wanted_rows,
            words,
            logits_rows=draws.logits_rows if draws.forks else None,
            is_graph=bool(launch.route.size),
        )

    def _run(self, arrays: Arrays, inputs: StepInputs, launch: _Launch) -> Tensor | None:
        """Sends the arrays and launches the step; hidden states, unless a graph has them."""
        patches = self._tables.patches()
        if launch.route.size:
            self._send_to_graph(arrays, patches)
            self._graphs.replay(launch.route.size, launch.variant)
            return None
        arrays = arrays | patches
        self._grow_staging(arrays)
        self._staging.send(arrays)
        views = self._staging.views(arrays)
        self._tables.apply(views)
        all_rows = launch.draws.wants_all_rows
        shape = StepShape(
            max_query_len=inputs.max_query_len,
            max_seq_len=inputs.max_seq_len,
            num_draws=0 if all_rows else launch.num_draws,
            is_graph=False,
        )
        return self._program.run(views, shape, launch.variant)

    def _send_to_graph(self, arrays: Arrays, patches: Arrays) -> None:
        """Patches travel with the inputs, behind them, if there is room; else before."""
        both = arrays | patches
        if StagingBuffer.num_bytes_for(both) <= self._graph_staging.num_bytes:
            self._graph_staging.send(both)
            views = self._graph_staging.views(both, patches)
        else:
            self._grow_staging(patches)
            self._staging.send(patches)
            views = self._staging.views(patches)
            self._graph_staging.send(arrays)
        self._tables.apply(views)

    def _grow_staging(self, arrays: Arrays) -> None:
        needed = StagingBuffer.num_bytes_for(arrays)
        if needed > self._staging.num_bytes:
            self._await_all()
            self._staging = StagingBuffer(2 * needed, self._device)

    def _await_all(self) -> None:
        while self._in_flight:
            self._in_flight.popleft().result()

    def _draw_by_host(self, launch: _Launch, hidden: Tensor | None) -> "_HostDraws":
        """What engine/sampler.py makes of the step's logits, once all earlier tokens are known."""
        self._await_all()
        draws = launch.draws
        prompt_logprobs = {}
        if draws.wants_all_rows:
            assert hidden is not None
            prompt_logprobs = self._prompt_logprobs(draws, hidden)
            output = self._sample(draws, hidden)
        elif draws.rows:
            index = torch.from_numpy(draws.logits_rows).to(self._device)
            output = self.sampler.sample(self._program.logits[index], draws.rows)
        else:
            output = SamplerOutput()
        for row in draws.rows:
            if (place := self.batch.find_row(row.seq_id)) is not None:
                token_ids = [t for t in (output.sampled.get(row.seq_id),) if t is not None]
                num_tokens = row.request.num_prompt_tokens + len(row.output_token_ids)
                self._tables.set_tokens(place, num_tokens, token_ids)
        return _HostDraws(output, prompt_logprobs)

    def _finish(
        self,
        plan: StepPlan,
        launch: _Launch,
        slot: StepSlot,
        timings: StepTimings,
        by_host: "_HostDraws | None",
    ) -> StepResult:
        """The result of a step that was launched; waits for it."""
        started = self._clock()
        device_s = slot.wait()
        output, prompt_logprobs = by_host or (self._drawn_by_device(launch, slot), {})
        self.batch.append_tokens(launch.draws.rows, output.sampled)
        if self._check:
            self.batch.check_invariants()
        return StepResult(
            step=plan.step,
            sampled=output.sampled,
            failed=output.invalid,
            logprobs=output.logprobs,
            prompt_logprobs=prompt_logprobs,
            timings=msgspec.structs.replace(
                timings, sample_s=self._clock() - started, device_s=device_s
            ),
        )

    def _drawn_by_device(self, launch: _Launch, slot: StepSlot) -> SamplerOutput:
        tokens, failed = slot.drawn(launch.num_draws)
        output = SamplerOutput()
        for row, token, is_broken in zip(launch.draws.rows, tokens, failed, strict=False):
            if is_broken:
                output.invalid[row.seq_id] = BROKEN_LOGITS
            else:
                output.sampled[row.seq_id] = token
        self._fail_broken_prompts(launch.draws, output)
        return output


class _SamplerRows:
    """Tells a device sampler who sits in which row (engine/input_batch.py, RowObserver)."""

    def __init__(self, sampler: DeviceSampler) -> None:
        self._sampler = sampler

    def occupy(self, row: int, sampling_row: SamplingRow, token_ids: Sequence[int]) -> None:
        self._sampler.add(row, sampling_row)

    def set_blocks(self, row: int, first: int, block_ids: Sequence[int]) -> None:
        """Blocks do not matter to it."""

    def vacate(self, row: int) -> None:
        self._sampler.remove(row)


class _HostDraws(NamedTuple):
    """Tokens that the host has drawn, and log-probabilities of prompts."""

    output: SamplerOutput
    prompt_logprobs: dict[str, tuple[TokenLogprobs, ...]]


def _drawing(draws: Draws, inputs: StepInputs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Who draws from which history: a row of the batch, and how many tokens are known of it."""
    index = draws.sequences[draws.logits_rows]
    return inputs.rows[index].astype(np.int64), inputs.seq_lens[index].astype(np.int64)


def _powers_of_two(last: int) -> list[int]:
    """From 16 on, and `last`."""
    return [*(2**i for i in range(4, 30) if 2**i < last), last]
