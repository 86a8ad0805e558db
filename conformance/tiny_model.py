"""A small random Llama in a folder: a real checkpoint for experiments, made in a second from a
seed.

Its weights are large enough that each token depends on all those before it, far beyond rounding,
and that its distributions are neither flat nor peaked: a sampler has something to get wrong.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def make_tiny_llama(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """Writes config.json and weights, plain Hugging Face format, and returns the folder.

    `changes` are fields of LlamaConfig. The global generator of torch is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config: Any = LlamaConfig(**{**SIZES, **changes})
        model: Any = LlamaForCausalLM(config).to(dtype)  # type: ignore[arg-type]
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = dtype
    config.save_pretrained(folder)
    # Not by save_pretrained, which draws a progress bar.
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
