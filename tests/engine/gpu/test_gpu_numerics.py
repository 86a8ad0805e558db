"""Logits on the GPU are as close to float64 as those of Hugging Face in the same dtype.

The three-way rule (conformance/numerics/three_way.py): engine and Hugging Face are each compared
with Hugging Face in float64, never with each other.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pagetwin.conformance.numerics.three_way import compare
from pagetwin.engine.llm import LLM
from pagetwin.engine.models.store import resolve_model
from pagetwin.engine.sampling_params import SamplingParams

VOCAB_SIZE = 512
LENGTHS = [1, 40, 300, 1500]

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.05,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama, 128 channels": LlamaConfig(**SIZES, head_dim=128),
    "mistral, window": MistralConfig(**SIZES, sliding_window=200),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=128),
}


def reference(folder: Path, dtype: torch.dtype, prompts: list[list[int]]) -> Tensor:
    """Hugging Face's log-probabilities of all next tokens, float64 [tokens but one, vocab]."""
    factory: Any = AutoModelForCausalLM
    model = factory.from_pretrained(folder, dtype=dtype, attn_implementation="eager").cuda()
    with torch.inference_mode():
        logits = [model(torch.tensor([p], device="cuda")).logits[0, :-1] for p in prompts]
    return torch.log_softmax(torch.cat(logits).double(), -1).cpu()


def ours(folder: Path, dtype: str, prompts: list[list[int]], vocab_size: int) -> Tensor:
    llm = LLM(
        str(folder),
        dtype=dtype,
        skip_tokenizer=True,
        max_model_len=2048,
        max_num_batched_tokens=512,
        max_num_seqs=8,
        num_blocks=600,
        max_logprobs=vocab_size,
        attention_backend="triton",
        device="cuda",
    )
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=-1)
    rows = []
    for output in llm.generate(prompts, params):
        assert output.prompt_logprobs is not None
        for entry in output.prompt_logprobs[1:]:
            assert entry is not None
            row = torch.empty(vocab_size, dtype=torch.float64)
            row[list(entry.token_ids)] = torch.tensor(entry.logprobs, dtype=torch.float64)
            rows.append(row)
    return torch.stack(rows)


def assert_as_close(folder: Path, dtype: str, prompts: list[list[int]], vocab_size: int) -> None:
    exact = reference(folder, torch.float64, prompts)
    half = getattr(torch, dtype)
    theirs = reference(folder, half, prompts) - exact
    mine = ours(folder, dtype, prompts, vocab_size) - exact
    rows = compare(mine.numpy(), theirs.numpy(), roundoff=torch.finfo(half).eps / 2)
    assert all(row.is_within for row in rows), rows


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", CONFIGS)
def test_random_weights(name: str, dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    factory: Any = AutoModelForCausalLM
    factory.from_config(CONFIGS[name], dtype=torch.float32).to(
        getattr(torch, dtype)
    ).save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist() for n in LENGTHS]
    assert_as_close(tmp_path, dtype, prompts, VOCAB_SIZE)


@pytest.mark.gpu
@pytest.mark.model
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_smollm2(dtype: str) -> None:
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(49152, (n,), generator=generator).tolist() for n in (20, 60)]
    assert_as_close(resolve_model("SmolLM2-135M-Instruct"), dtype, prompts, 49152)
