"""What the tests of the GPU's runner share: a small model, runs of it, and where they take place.

Beside a GPU, the tests run on it. A process started with TRITON_INTERPRET=1 interprets the kernels
on the CPU, slowly, without CUDA graphs; a plain run on a CPU starts such a process
(test_interpreted.py), and skips, with the reason, what needs a GPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from triton import knobs

from pagetwin.engine.config import ModelConfig
from pagetwin.engine.llm import LLM, engine_from_knobs
from pagetwin.engine.models.loader import LoadedModel, load_model
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import Counters, StepTimings, TokenLogprobs
from pagetwin.engine.trace import HistoryWriter, Record, ResultRecord
from pagetwin.kernels.interpreter import mend_interpreter

INTERPRETED = bool(knobs.runtime.interpret)
VOCAB_SIZE = 512

if INTERPRETED:
    mend_interpreter()

HERE = INTERPRETED or torch.cuda.is_available()


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs a GPU or the interpreter: run by test_interpreted.py")
    folder = Path(__file__).parent
    for item in items:
        starts_interpreter = item.path.name == "test_interpreted.py"
        is_ours = item.path.parent == folder and not item.get_closest_marker("gpu")
        if is_ours and starts_interpreter == HERE:
            item.add_marker(skip)


@dataclass(frozen=True)
class Outcome:
    """What a run of several requests came to."""

    tokens: list[list[tuple[int, ...]]]
    """By request and sample."""
    logprobs: list[list[tuple[TokenLogprobs, ...]]]
    """Likewise, of requests that asked for them; floats to the last bit."""
    counters: Counters
    timings: list[StepTimings]
    records: Sequence[Record]


RunModel = Callable[..., Outcome]


@pytest.fixture(scope="session")
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 with random weights, large ones, so that a token depends on all before it."""
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        dtype=torch.bfloat16,
    )
    path = tmp_path_factory.mktemp("qwen3")
    factory: Any = AutoModelForCausalLM
    factory.from_config(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def loaded(folder: Path, device: str) -> LoadedModel:
    config = ModelConfig(model=str(folder), dtype="bfloat16", skip_tokenizer=True)
    return load_model(config, torch.device(device))


@pytest.fixture
def run_model(folder: Path, loaded: LoadedModel, device: str) -> RunModel:
    """run_model(prompts, params, **knobs): what LLM(**knobs) makes of the prompts."""

    def run(
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        **changes: Any,
    ) -> Outcome:
        settings: dict[str, Any] = {
            "dtype": "bfloat16",
            "skip_tokenizer": True,
            "device": device,
            "max_model_len": 256,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "num_blocks": 200,
            "block_size": 16,
            "attention_backend": "triton",
            "debug_invariants": True,
        }
        history = HistoryWriter(keep=True, with_block_tables=True)
        engine = engine_from_knobs(str(folder), settings | changes, loaded=loaded, history=history)
        outputs = LLM.from_engine(engine).generate(prompts, params)
        results = [r for r in history.records if isinstance(r, ResultRecord)]
        return Outcome(
            tokens=[[s.token_ids for s in output.outputs] for output in outputs],
            logprobs=[[s.logprobs or () for s in output.outputs] for output in outputs],
            counters=engine.core.scheduler.counters(),
            timings=[r.timings for r in results],
            records=history.records,
        )

    return run


def make_prompts(lengths: Sequence[int], shared: int = 0) -> list[list[int]]:
    """Random prompts of these lengths that begin with the same `shared` tokens."""
    generator = torch.Generator().manual_seed(sum(lengths))
    head = torch.randint(VOCAB_SIZE, (shared,), generator=generator).tolist()
    return [
        [*head, *torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist()][:n] for n in lengths
    ]


@pytest.fixture
def prompts() -> Callable[..., list[list[int]]]:
    """prompts(lengths, shared=0): random prompts of these lengths, with a common beginning."""
    return make_prompts
