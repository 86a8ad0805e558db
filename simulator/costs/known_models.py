"""Decides which models are known by name: the sizes in their published config.json."""

from pathlib import Path
from typing import Any

from pagetwin.engine.errors import ModelError
from pagetwin.simulator.costs.model_shape import read_config

_SIZES = (
    # name, layers, hidden, heads, KV heads, head, MLP, vocabulary, tied, context
    ("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256, False, 131072),
    ("Llama-3.1-70B", 80, 8192, 64, 8, 128, 28672, 128256, False, 131072),
    ("Mistral-7B-v0.3", 32, 4096, 32, 8, 128, 14336, 32768, False, 32768),
    ("Qwen3-0.6B", 28, 1024, 16, 8, 128, 3072, 151936, True, 40960),
    ("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936, False, 40960),
    ("Qwen3-32B", 64, 5120, 64, 8, 128, 25600, 151936, False, 40960),
    ("SmolLM2-135M", 30, 576, 9, 3, 64, 1536, 49152, True, 8192),
)


def _config(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head: int,
    inner: int,
    vocabulary: int,
    tied: bool,
    context: int,
) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": context,
        "torch_dtype": "bfloat16",
    }


KNOWN = {name: _config(*sizes) for name, *sizes in _SIZES}  # type: ignore[arg-type]


def config_named(model: str) -> dict[str, Any]:
    """The config of a known name (any case, with or without -Instruct), of a config.json, or of a
    folder with one. Raises ModelError."""
    path = Path(model)
    if path.exists():
        return read_config(path)
    plain = model.rpartition("/")[2].lower().removesuffix("-instruct")
    for name, config in KNOWN.items():
        if name.lower() == plain:
            return config
    raise ModelError(
        f"model {model!r} is neither a file nor known by name; give its config.json, or one of "
        f"{', '.join(KNOWN)}"
    )
