"""What is compiled before the first step; in a new process, that has compiled nothing yet."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import triton
from tests.engine.gpu.conftest import make_prompts

from pagetwin.engine.llm import LLM
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import Counters

# A prompt's log-probabilities are left out: what they launch for all rows is rare, and the host's.
KINDS = [
    SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True),
    SamplingParams(temperature=0.8, top_k=20, seed=3, max_tokens=30, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=1, n=2, max_tokens=30, ignore_eos=True),
    SamplingParams(temperature=0.0, frequency_penalty=0.5, max_tokens=30, ignore_eos=True),
    SamplingParams(top_p=0.9, min_p=0.01, repetition_penalty=1.2, max_tokens=30, ignore_eos=True),
]


def serve(folder: Path) -> tuple[list[str], list[str], Counters]:
    """Kernels compiled, or read from disk, before the first request and after it."""
    names: list[str] = []

    def listen(*, src: Any, **facts: Any) -> None:
        names.append(src.name)

    triton.knobs.compilation.listener = listen
    llm = LLM(
        str(folder),
        skip_tokenizer=True,
        dtype="bfloat16",
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        num_blocks=24,
        num_host_blocks=60,
        preemption_mode="swap",
    )
    before, names[:] = list(names), []
    for lengths in ([5, 40, 33, 90, 17], [60, 64, 66, 70, 48]):
        llm.generate(make_prompts(lengths, shared=30), KINDS)
        llm.generate(make_prompts(lengths, shared=30), KINDS)
    return before, names, llm.engine.core.scheduler.counters()


@pytest.mark.gpu
def test_nothing_is_compiled_once_the_engine_serves(folder: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        before, after, counters = process.submit(serve, folder).result()
    assert "move_blocks_kernel" in before
    assert after == []
    assert counters.preemptions_swap > 0
    assert counters.prefix_hit_tokens > 0
    assert counters.cow_copies > 0
