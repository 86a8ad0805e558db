"""Small random models on disk, in plain Hugging Face format: any engine can load them."""

import json
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file

from pagetwin.engine.config import DType, ModelConfig
from pagetwin.engine.models.loader import load_model

SHARPNESS = 3.0
"""Standard deviation of a logit: near ties are rare, and so are certainties."""


class RandomModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Llama whose weights are drawn from `seed`."""

    seed: int = 0
    vocab_size: int = 32
    hidden_size: int = 32
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    max_model_len: int = 4096
    dtype: DType = "float32"


def write_random_checkpoint(model: RandomModel, folder: Path) -> None:
    """Writes config.json and model.safetensors; equal models give equal bytes.

    Weights are normal and scaled by their fan-in, so that activations keep their size; the output
    matrix is scaled to give logits the deviation SHARPNESS.
    """
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32" if model.dtype == "auto" else model.dtype,
        "hidden_size": model.hidden_size,
        "intermediate_size": 2 * model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_model_len,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    wanted = ModelConfig(model=str(folder), load_format="dummy", skip_tokenizer=True)
    slots = load_model(wanted, torch.device("cpu")).model.checkpoint_slots()
    save_file(
        {name: _drawn(name, slots, model.seed) for name in slots}, folder / "model.safetensors"
    )


def _drawn(name: str, slots: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    slot = slots[name]
    if slot.ndim == 1:
        return torch.ones_like(slot)
    generator = torch.Generator().manual_seed(seed * 1009 + sorted(slots).index(name))
    drawn = torch.randn(slot.shape, generator=generator)
    scale = 1.0 if "embed_tokens" in name else slot.shape[-1] ** -0.5
    if "lm_head" in name:
        scale *= SHARPNESS
    return (drawn * scale).to(slot.dtype).contiguous()
