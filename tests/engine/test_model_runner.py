"""The model runner alone: the order of its work, and what it hands to and takes from the model."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.attention.metadata import ForwardContext
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.errors import StepFailed
from pagetwin.engine.kv_cache import KVCache, KVCacheLayout
from pagetwin.engine.model_runner import PROMPT_LOGITS_ROWS, ModelRunner
from pagetwin.engine.models.loader import LoadedModel
from pagetwin.engine.models.spec import ModelSpec
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import Sampler
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import (
    BlockCopy,
    IntroducedSequence,
    ScheduledSequence,
    StepPlan,
    StepTimings,
)

VOCAB_SIZE = 512
MAX_MODEL_LEN = 400


class NoBackend(AttentionBackend):
    name = "none"

    @classmethod
    def rejection(cls, spec: AttentionSpec) -> str | None:
        return None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("the model of these tests has no attention")


class Successor:
    """A model whose likeliest next token is the last one plus its position; it keeps its inputs."""

    def __init__(self, spec: ModelSpec, kv_cache: KVCache) -> None:
        self.spec = spec
        self.kv_cache = kv_cache
        self.inputs: list[tuple[list[int], list[int]]] = []
        self.contexts: list[ForwardContext] = []
        self.blocks: list[Tensor] = []
        self.num_logits_rows: list[int] = []
        self.broken_token = -1

    @classmethod
    def from_hf_config(cls, *args: Any, **kwargs: Any) -> "Successor":
        raise AssertionError("made by hand")

    def checkpoint_slots(self) -> dict[str, Tensor]:
        return {}

    def tied_names(self) -> dict[str, str]:
        return {}

    def forward(self, input_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.inputs.append((input_ids.tolist(), positions.tolist()))
        self.contexts.append(context)
        self.blocks.append(self.kv_cache.device_pool[0, 0, :, 0, 0, 0].clone())
        hidden = torch.stack((input_ids, positions), dim=-1)
        return hidden if context.sampled_rows is None else hidden[context.sampled_rows]

    def compute_logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        assert out is None
        self.num_logits_rows.append(len(hidden))
        logits = torch.zeros(len(hidden), VOCAB_SIZE)
        logits[torch.arange(len(hidden)), hidden.sum(-1) % VOCAB_SIZE] = 1.0
        logits[hidden[:, 0] == self.broken_token] = torch.nan
        return logits


def make_runner(clock: Iterator[int] | None = None) -> tuple[ModelRunner, Successor]:
    config = EngineConfig(
        cache=CacheConfig(num_blocks=100, block_size=8, num_host_blocks=4),
        scheduler=SchedulerConfig(max_model_len=MAX_MODEL_LEN, max_num_seqs=4),
        debug_invariants=True,
    )
    spec = ModelSpec(
        num_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        head_size=1,
        vocab_size=VOCAB_SIZE,
        max_model_len=MAX_MODEL_LEN,
        sliding_windows=(0,),
        eos_token_ids=(),
        dtype=torch.float32,
    )
    layout = KVCacheLayout(
        num_layers=1, block_size=8, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    kv_cache = KVCache(layout, 100, 4, device=torch.device("cpu"))
    model = Successor(spec, kv_cache)
    ticks = clock if clock is not None else count()
    runner = ModelRunner(
        LoadedModel(model=model, spec=spec, folder=Path(), ignored_tensors=()),
        NoBackend(
            AttentionSpec(
                head_size=1, num_heads=1, num_kv_heads=1, dtype=torch.float32, block_size=8
            )
        ),
        config,
        kv_cache=kv_cache,
        sampler=Sampler(VOCAB_SIZE),
        clock=lambda: float(next(ticks)),
    )
    return runner, model


def first_plan(
    request: Request, *chunk: int, block_ids: tuple[int, ...] = (), samples: bool = True
) -> StepPlan:
    """Introduces the request with the chunk [start, start + number of tokens)."""
    introduced = IntroducedSequence(
        seq_id=f"{request.request_id}/0",
        request_id=request.request_id,
        sample_index=0,
        token_ids=request.prompt_token_ids,
        block_ids=block_ids or tuple(range(1, 2 + request.num_prompt_tokens // 8)),
    )
    start, num_tokens = chunk
    return StepPlan(
        step=0,
        new_requests=(request,),
        introduced=(introduced,),
        scheduled=(ScheduledSequence(introduced.seq_id, start, num_tokens, samples=samples),),
    )


def greedy(name: str, prompt: tuple[int, ...], **params: Any) -> Request:
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(**{"temperature": 0.0} | params),
    )


def test_a_step_that_schedules_nothing_still_moves_memory() -> None:
    runner, model = make_runner()
    runner.kv_cache.device_pool[:, :, 3] = 7.0
    result = runner.execute(StepPlan(step=5, swap_outs=(BlockCopy(3, 1),)))
    assert (result.step, result.sampled) == (5, {})
    assert model.inputs == []
    assert (runner.kv_cache.host_pool[:, :, 1] == 7.0).all()


def test_memory_moves_come_before_the_model_in_the_order_of_the_policy() -> None:
    runner, model = make_runner()
    pool = runner.kv_cache.device_pool
    pool[:, :, 3] = 3.0
    plan = StepPlan(
        step=0,
        swap_outs=(BlockCopy(3, 0),),
        swap_ins=(BlockCopy(0, 4),),
        copies=(BlockCopy(4, 5),),
        **{
            name: getattr(first_plan(greedy("r", (1, 2)), 0, 2), name)
            for name in ("new_requests", "introduced", "scheduled")
        },
    )
    runner.execute(plan)
    assert model.blocks[0][[4, 5]].tolist() == [3.0, 3.0]


def test_a_sampled_token_is_the_next_step_s_input_at_the_next_position() -> None:
    runner, model = make_runner()
    first = runner.execute(first_plan(greedy("r", (10, 11, 12)), 0, 3, block_ids=(6,)))
    assert first.sampled == {"r/0": 14}
    second = runner.execute(
        StepPlan(step=1, scheduled=(ScheduledSequence("r/0", 3, 1, samples=True),))
    )
    assert second.sampled == {"r/0": 17}
    assert model.inputs == [([10, 11, 12], [0, 1, 2]), ([14], [3])]
    metadata = model.contexts[1].metadata
    assert metadata.slot_mapping.tolist() == [6 * 8 + 3]
    assert metadata.slot_mapping.dtype == torch.int64
    assert metadata.block_tables[metadata.table_rows].tolist()[0][:2] == [6, 0]
    assert (metadata.block_tables.dtype, metadata.seq_lens.dtype) == (torch.int32, torch.int32)
    assert (metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()) == ([0, 1], [4])


def test_only_a_sequence_that_reaches_its_last_token_has_logits() -> None:
    runner, model = make_runner()
    result = runner.execute(first_plan(greedy("r", (1, 2, 3)), 0, 2, samples=False))
    assert (result.sampled, model.num_logits_rows) == ({}, [])


def test_the_samples_of_a_group_share_one_row_of_logits() -> None:
    runner, model = make_runner()
    group = greedy("g", (5, 6), n=3, temperature=1.0, top_k=1)
    result = runner.execute(first_plan(group, 0, 2))
    assert result.sampled == {"g/0": 7, "g/1": 7, "g/2": 7}
    assert model.num_logits_rows == [1]


def test_prompt_logprobs_come_in_pieces_and_hold_few_logits_at_once() -> None:
    prompt = tuple(i % 500 for i in range(2 * PROMPT_LOGITS_ROWS - 200))
    whole, model = make_runner()
    asked = greedy("r", prompt, prompt_logprobs=2)
    entries = whole.execute(first_plan(asked, 0, len(prompt))).prompt_logprobs["r/0"]
    assert [entry.token_ids[0] for entry in entries] == list(prompt[1:])
    assert max(model.num_logits_rows) == PROMPT_LOGITS_ROWS
    pieces, _ = make_runner()
    cut = 100
    got = pieces.execute(first_plan(asked, 0, cut, samples=False)).prompt_logprobs["r/0"]
    assert len(got) == cut
    last = ScheduledSequence("r/0", cut, len(prompt) - cut, samples=True)
    result = pieces.execute(StepPlan(step=1, scheduled=(last,)))
    assert got + result.prompt_logprobs["r/0"] == entries


def test_prompt_logprobs_are_not_told_again_after_a_preemption() -> None:
    runner, _ = make_runner()
    asked = greedy("r", (1, 2, 3), prompt_logprobs=1)
    assert runner.execute(first_plan(asked, 0, 3)).prompt_logprobs
    again = IntroducedSequence(
        seq_id="r/0", request_id="r", sample_index=0, token_ids=(1, 2, 3, 5), block_ids=(9,)
    )
    plan = StepPlan(
        step=1, introduced=(again,), scheduled=(ScheduledSequence("r/0", 0, 4, samples=True),)
    )
    result = runner.execute(plan)
    assert result.prompt_logprobs == {}
    assert result.sampled == {"r/0": 8}


def test_broken_logits_name_the_sequence() -> None:
    runner, model = make_runner()
    model.broken_token = 3
    result = runner.execute(first_plan(greedy("r", (1, 2, 3)), 0, 3))
    assert result.sampled == {}
    assert list(result.failed) == ["r/0"]
    assert "NaN" in result.failed["r/0"]


def test_timings_are_read_from_the_given_clock() -> None:
    runner, _ = make_runner(iter([10, 11, 14, 20]))
    result = runner.execute(first_plan(greedy("r", (1,)), 0, 1))
    assert result.timings == StepTimings(prepare_s=1.0, execute_s=3.0, sample_s=6.0)


def test_the_plain_runner_refuses_a_token_that_nobody_knows_yet() -> None:
    runner, _ = make_runner()
    runner.execute(first_plan(greedy("r", (1, 2)), 0, 2))
    with pytest.raises(AssertionError, match="nobody knows"):
        runner.execute(StepPlan(step=1, scheduled=(ScheduledSequence("r/0", 3, 1, samples=True),)))


def test_a_device_without_memory_is_a_failed_step_after_which_others_run() -> None:
    """The rows follow the plan that failed, so that the next one can drop them."""
    runner, model = make_runner()
    sound = model.forward

    def no_memory(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.forward = no_memory  # type: ignore[method-assign]
    with pytest.raises(StepFailed, match=r"step 0: no memory .* lower max_num_batched_tokens"):
        runner.execute(first_plan(greedy("r", (1, 2, 3)), 0, 3))
    model.forward = sound  # type: ignore[method-assign]
    after = first_plan(greedy("s", (5, 6)), 0, 2)
    result = runner.execute(replace(after, step=1, dropped=("r/0",), ended_requests=("r",)))
    assert result.sampled == {"s/0": 7}
