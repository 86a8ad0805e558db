"""A made-up demo run with the shapes of a real one, and a model that takes no time."""

import json
import random
from pathlib import Path

import pytest

from pagetwin.conformance.demo.result import (
    BlockSpan,
    Check,
    DemoResult,
    ParityRow,
    RequestRow,
    StepPoint,
    Summary,
)
from pagetwin.engine.config import CacheConfig, SchedulerConfig

NUM_STEPS, NUM_BLOCKS, NUM_REQUESTS = 200, 41, 24


def made_up_summary() -> Summary:
    return Summary(
        agreed=True,
        requests=NUM_REQUESTS,
        steps=NUM_STEPS,
        decisions_compared=4210,
        decision_differences=0,
        block_tables_compared=1204,
        block_table_differences=0,
        counters_compared=6300,
        counter_differences=0,
        invariants_checked=9000,
        invariant_violations=0,
        tokens_compared=411,
        token_mismatches=0,
        near_ties=1,
        near_tie_bound=2.4e-4,
        oracle_error=4e-5,
        smallest_margin=3e-3,
        preemptions_recompute=7,
        preemptions_swap=5,
        prefix_hit_tokens=1480,
        full_block_hits=80,
        partial_hits=9,
        evictions=166,
        cow_copies=6,
        aborts=2,
        prompt_tokens=2900,
        output_tokens=540,
        output_tokens_per_s=21.4,
        step_p50_ms=88.0,
        step_p95_ms=310.0,
        wall_s=74.2,
        phases_s={"model": 6.1, "engine": 38.0, "twin": 1.2, "checkers": 0.8, "oracle": 28.1},
        seed=0,
        trace="a synthetic trace",
        model="SmolLM2-135M-Instruct",
        cache=CacheConfig(num_blocks=NUM_BLOCKS, num_host_blocks=12),
        scheduler=SchedulerConfig(
            max_model_len=256, max_num_seqs=8, max_num_batched_tokens=64, policy="priority"
        ),
        versions={"pagetwin": "0.1.0", "torch": "2.13.0"},
        machine={"processor": "a processor", "cores": "2"},
    )


@pytest.fixture
def demo_result() -> DemoResult:
    chance = random.Random(0)
    spans, held = made_up_spans(chance), [0] * NUM_STEPS
    for span in spans:
        for step in range(span.first_step, span.end_step):
            held[step] += span.state == "held"
    return DemoResult(
        summary=made_up_summary(),
        steps=tuple(made_up_step(step, held[step], chance) for step in range(NUM_STEPS)),
        spans=spans,
        checks=(
            Check(name="Scheduled sequences and their tokens", compared=3006, differences=0),
            Check(name="Block tables", compared=1204, differences=0),
        ),
        differences=(),
        parity=tuple(
            ParityRow(
                request_id=f"r{index:02}",
                tokens_compared=24,
                mismatches=0,
                near_ties=0,
                opening="The ferry comes in at nine.",
                output_text="arrived at noon.",
            )
            for index in range(0, NUM_REQUESTS, 2)
        ),
        requests=tuple(made_up_request(index) for index in range(NUM_REQUESTS)),
        command="pagetwin demo --seed 0",
    )


def made_up_spans(chance: random.Random) -> tuple[BlockSpan, ...]:
    spans = []
    for block_id in range(1, NUM_BLOCKS):
        step = chance.randrange(12)
        while step < NUM_STEPS:
            request = min(NUM_REQUESTS - 1, step * NUM_REQUESTS // NUM_STEPS + chance.randrange(3))
            owners = tuple(f"r{request:02}/{sample}" for sample in range(1 + (request % 6 == 0)))
            end = min(NUM_STEPS, step + chance.randrange(8, 60))
            spans.append(BlockSpan(block_id, step, end, "held", owners))
            until = min(NUM_STEPS, end + chance.randrange(25))
            if chance.random() < 0.6 and end < until:
                spans.append(BlockSpan(block_id, end, until, "cached", owners[:1]))
            step = until
    return tuple(spans)


def made_up_step(step: int, held: int, chance: random.Random) -> StepPoint:
    cached = chance.randrange(NUM_BLOCKS - held)
    return StepPoint(
        step=step,
        held_blocks=held,
        cached_free_blocks=cached,
        free_blocks=NUM_BLOCKS - 1 - held - cached,
        waiting=max(0, 9 - abs(step - 70) // 8),
        running=min(8, 1 + step // 6, (NUM_STEPS - step) // 5),
        swapped=step % 40 // 30,
        prompt_tokens=58 if step % 5 == 0 and step < 150 else 0,
        decode_tokens=min(6, 1 + step // 8),
        duration_s=0.25 if step % 5 == 0 else 0.08,
        prefix_hit_tokens=40 if step % 9 == 0 else 0,
        evictions=3 if step % 7 == 0 else 0,
        cow_copies=int(step % 41 == 5),
        preemptions_recompute=int(step % 31 == 9),
        preemptions_swap=int(step % 43 == 11),
        aborts=int(step in (20, 90)),
    )


def made_up_request(index: int) -> RequestRow:
    return RequestRow(
        request_id=f"r{index:02}",
        family=("sailing", "bread", "none")[index % 3],
        priority=index % 3,
        num_samples=2 if index % 6 == 0 else 1,
        greedy=index % 6 != 0,
        num_prompt_tokens=90 + index,
        num_output_tokens=24,
        num_cached_tokens=32 if index % 3 else 0,
        submitted_step=index * 7,
        first_scheduled_step=None if index == 5 else index * 7 + 2,
        ended_step=index * 7 + 40,
        preemptions=index % 2,
        finish="abort" if index == 5 else "length",
    )


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A configuration without weights; its name is `tiny`."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 96,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
