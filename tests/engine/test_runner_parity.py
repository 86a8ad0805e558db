"""A small random Llama through the whole engine, in a pool that is too small: the tokens are those
of transformers, whatever the scheduler does to get them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from pagetwin.engine.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from pagetwin.engine.core import EngineCore
from pagetwin.engine.factory import build_model_runner
from pagetwin.engine.output_processor import OutputProcessor
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.step import Counters, TokenLogprobs

VOCAB_SIZE = 96
MAX_MODEL_LEN = 64
ROOMY: dict[str, Any] = {"num_blocks": 200, "max_num_batched_tokens": 512}
TIGHT: dict[str, Any] = {"num_blocks": 26, "max_num_batched_tokens": 24}


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    hf: Any
    """The same model in transformers, whose methods have no types."""

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        return self.generate(prompt, num_tokens)[0]

    def generate(self, prompt: Sequence[int], num_tokens: int, **knobs: Any) -> list[list[int]]:
        with torch.inference_mode():
            out = self.hf.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                pad_token_id=0,
                **knobs,
            )
        tokens: list[list[int]] = out[:, len(prompt) :].tolist()
        return tokens


SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2 * MAX_MODEL_LEN,
    # Large weights, so that a token depends on all those before it, far beyond rounding.
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "dtype": torch.float32,
}


def save(hf: Any, folder: Path) -> Checkpoint:
    hf.save_pretrained(folder)
    return Checkpoint(folder, hf.eval())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    # Of a few seeds the one whose two likeliest tokens are never closer than 8e-3 in logprob.
    torch.manual_seed(9)
    return save(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Every layer sees 10 tokens."""
    torch.manual_seed(1)
    config = MistralConfig(**SIZES, sliding_window=10)
    return save(MistralForCausalLM(config), tmp_path_factory.mktemp("mistral"))


@dataclass
class Run:
    """What an engine did: by sequence id its tokens and log-probabilities."""

    tokens: dict[str, list[int]]
    logprobs: dict[str, list[TokenLogprobs]]
    prompt_logprobs: dict[str, list[TokenLogprobs]]
    outputs: dict[str, RequestOutput]
    counters: Counters
    num_steps: int = 0
    num_chunked_steps: int = 0


def run_engine(
    checkpoint: Checkpoint,
    requests: Sequence[Request],
    knobs: Mapping[str, Any],
    *,
    fill: float = 0.0,
    submit_every: int = 0,
) -> Run:
    """Runs the requests to their end; the KV pool is filled with `fill` before.

    One is submitted every so many steps, or all at once with 0.
    """
    cache_knobs = {k: v for k, v in knobs.items() if k in CacheConfig.__struct_fields__}
    scheduler_knobs = {k: v for k, v in knobs.items() if k not in cache_knobs}
    config = EngineConfig(
        cache=CacheConfig(block_size=4, **cache_knobs),
        scheduler=SchedulerConfig(
            max_model_len=MAX_MODEL_LEN,
            **{"max_num_seqs": 8, **scheduler_knobs},
        ),
        model=ModelConfig(model=str(checkpoint.folder), skip_tokenizer=True),
        device="cpu",
        debug_invariants=True,
    )
    runner, _ = build_model_runner(config)
    runner.kv_cache.device_pool.fill_(fill)
    runner.kv_cache.host_pool.fill_(fill)
    processor = OutputProcessor(None, max_model_len=MAX_MODEL_LEN)
    core = EngineCore(config, runner, processor=processor)
    waiting = list(reversed(requests))
    run = Run({}, {}, {}, {}, Counters())
    ended: set[str] = set()
    while waiting or core.has_unfinished_requests():
        while waiting and (not submit_every or run.num_steps % submit_every == 0):
            core.add_request(waiting[-1])
            processor.add_request(waiting.pop(), None)
            if submit_every:
                break
        run.num_steps += 1
        completed = core.step()
        if completed is None:
            continue
        outputs = processor.collect(completed.update)
        run.outputs |= {out.request_id: out for out in outputs if out.finished}
        plan, result = completed.plan, completed.result
        run.num_chunked_steps += any(
            s.num_scheduled_tokens > 1 and not s.samples for s in plan.scheduled
        )
        for seq_id, token in result.sampled.items():
            if seq_id not in ended:
                run.tokens.setdefault(seq_id, []).append(token)
        for seq_id, entry in result.logprobs.items():
            run.logprobs.setdefault(seq_id, []).append(entry)
        for seq_id, entries in result.prompt_logprobs.items():
            run.prompt_logprobs.setdefault(seq_id, []).extend(entries)
        ended |= {f.seq_id for f in completed.update.finished}
    run.counters = core.scheduler.counters()
    return run


def make_prompts(count: int) -> list[tuple[int, ...]]:
    """Prompts of 9 to 40 tokens in families: two share whole blocks, and part of one more."""
    generator = torch.Generator().manual_seed(1)
    prompts = []
    for i in range(count):
        if i % 2 == 0:
            length = int(torch.randint(9, 41, (), generator=generator))
            family = torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist()
            prompts.append(tuple(family))
        else:
            tail = torch.randint(VOCAB_SIZE, (5,), generator=generator).tolist()
            prompts.append((*family[: len(family) - 3], *tail)[:40])
    return prompts


def greedy_requests(num_tokens: int = 16, **params: Any) -> list[Request]:
    """Requests that take the likeliest token; as the only candidate, if there are samples."""
    return [
        Request(
            request_id=f"r{i:02}",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(
                **{"temperature": 0.0, "max_tokens": num_tokens, "ignore_eos": True} | params
            ),
            arrival_s=float(i),
            priority=i % 3,
        )
        for i, prompt in enumerate(make_prompts(12))
    ]


@pytest.mark.parametrize(
    "knobs",
    [
        {"preemption_mode": "recompute"},
        {"preemption_mode": "recompute", "enable_prefix_caching": False},
        {"preemption_mode": "swap", "num_host_blocks": 40},
        {"preemption_mode": "recompute", "policy": "priority", "long_prefill_token_threshold": 7},
        {"preemption_mode": "recompute", "async_scheduling": True},
        {"preemption_mode": "swap", "num_host_blocks": 40, "async_scheduling": True},
    ],
    ids=lambda knobs: ",".join(f"{k}={v}" for k, v in knobs.items()),
)
def test_greedy_tokens_are_those_of_transformers_in_a_pool_that_is_too_small(
    checkpoint: Checkpoint, knobs: dict[str, Any]
) -> None:
    requests = greedy_requests()
    run = run_engine(checkpoint, requests, TIGHT | knobs, fill=torch.nan, submit_every=3)
    expected = {f"{r.request_id}/0": checkpoint.greedy(r.prompt_token_ids, 16) for r in requests}
    assert run.tokens == expected
    assert len({tuple(tokens) for tokens in expected.values()}) == len(requests)
    assert run.num_chunked_steps > 0
    counters = run.counters
    assert counters.finished == len(requests)
    if knobs["preemption_mode"] == "swap":
        assert counters.preemptions_swap > 0
    else:
        assert counters.preemptions_recompute > 0
    if knobs.get("enable_prefix_caching", True):
        assert counters.prefix_hit_tokens > 0
        assert counters.partial_hits > 0
        assert counters.evictions > 0


def test_greedy_samples_of_one_prompt_share_its_blocks_and_agree(checkpoint: Checkpoint) -> None:
    requests = greedy_requests(n=3, temperature=1.0, top_k=1)
    run = run_engine(checkpoint, requests, TIGHT, fill=torch.nan, submit_every=2)
    for request in requests:
        expected = checkpoint.greedy(request.prompt_token_ids, 16)
        for i in range(3):
            assert run.tokens[f"{request.request_id}/{i}"] == expected
    assert run.counters.cow_copies > 0
    assert run.counters.preemptions_recompute > 0


@pytest.mark.parametrize("window", [0, 10], ids=["kept", "released"])
@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_blocks_behind_the_window_may_be_released(
    windowed: Checkpoint, window: int, mode: str
) -> None:
    requests = greedy_requests()
    knobs = TIGHT | {"num_blocks": 18, "preemption_mode": mode, "num_host_blocks": 30}
    run = run_engine(
        windowed, requests, knobs | {"sliding_window": window}, fill=torch.nan, submit_every=2
    )
    for request in requests:
        expected = windowed.greedy(request.prompt_token_ids, 16)
        assert run.tokens[f"{request.request_id}/0"] == expected
    assert run.counters.preemptions_recompute + run.counters.preemptions_swap > 0
    assert run.counters.prefix_hit_tokens > 0


@pytest.mark.parametrize("is_async", [False, True])
def test_beams_are_those_of_transformers_beside_other_requests(
    checkpoint: Checkpoint, is_async: bool
) -> None:
    greedy = greedy_requests()
    requests = [
        msgspec.structs.replace(
            r,
            sampling_params=SamplingParams(max_tokens=6, n=2),
            beam_search=BeamSearchParams(beam_width=3),
        )
        if i % 3 == 1
        else r
        for i, r in enumerate(greedy)
    ]
    knobs = TIGHT | {"num_blocks": 37, "async_scheduling": is_async}
    run = run_engine(checkpoint, requests, knobs, fill=torch.nan, submit_every=1)
    for request in requests:
        if request.beam_search is None:
            expected = [checkpoint.greedy(request.prompt_token_ids, 16)]
        else:
            expected = checkpoint.generate(
                request.prompt_token_ids, 6, num_beams=3, num_return_sequences=2
            )
        outputs = run.outputs[request.request_id].outputs
        assert [list(out.token_ids) for out in outputs] == expected
    assert run.counters.cow_copies > 0
    assert run.counters.preemptions_recompute > 0


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 16, 33, 64])
def test_the_size_of_chunks_changes_no_token(checkpoint: Checkpoint, chunk: int) -> None:
    requests = greedy_requests(logprobs=2)
    knobs = {"num_blocks": 200, "max_num_batched_tokens": max(8, chunk)}
    run = run_engine(checkpoint, requests, knobs | {"long_prefill_token_threshold": chunk})
    whole = run_engine(checkpoint, requests, ROOMY)
    assert run.tokens == whole.tokens
    assert run.num_chunked_steps > 0 or chunk in (1, 64)
    for seq_id, entries in whole.logprobs.items():
        for entry, other in zip(entries, run.logprobs[seq_id], strict=True):
            assert other.token_ids == entry.token_ids
            assert other.logprobs == pytest.approx(entry.logprobs, abs=1e-4)


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_seeded_samples_are_the_same_in_any_company(checkpoint: Checkpoint, mode: str) -> None:
    requests = [
        Request(
            request_id=f"r{i:02}",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(n=i % 3 + 1, seed=i, max_tokens=12, top_k=40),
            arrival_s=float(i),
        )
        for i, prompt in enumerate(make_prompts(8))
    ]
    knobs = TIGHT | {"preemption_mode": mode, "num_host_blocks": 30}
    together = run_engine(checkpoint, requests, knobs, fill=torch.nan)
    assert together.counters.preemptions_recompute + together.counters.preemptions_swap > 0
    for request in requests:
        alone = run_engine(checkpoint, [request], ROOMY)
        for seq_id, tokens in alone.tokens.items():
            assert together.tokens[seq_id] == tokens
    samples = [together.tokens["r02/0"], together.tokens["r02/1"], together.tokens["r02/2"]]
    assert len({tuple(s) for s in samples}) == 3


@pytest.mark.parametrize("chunk", [1, 6, 64])
def test_prompt_logprobs_are_those_of_transformers_in_any_pieces(
    checkpoint: Checkpoint, chunk: int
) -> None:
    requests = greedy_requests(num_tokens=4, prompt_logprobs=3)
    knobs = ROOMY | {"long_prefill_token_threshold": chunk}
    run = run_engine(checkpoint, requests, knobs)
    for request in requests:
        prompt = torch.tensor(request.prompt_token_ids)
        with torch.inference_mode():
            logits = checkpoint.hf(prompt[None]).logits[0]
        expected = torch.log_softmax(logits, -1)[:-1].gather(1, prompt[1:, None])[:, 0]
        entries = run.prompt_logprobs[f"{request.request_id}/0"]
        assert [e.token_ids[0] for e in entries] == prompt[1:].tolist()
        got = torch.tensor([e.logprobs[0] for e in entries])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
        assert all(len(e.token_ids) in (3, 4) for e in entries)
