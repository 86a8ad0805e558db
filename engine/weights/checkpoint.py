"""Decides what a model path holds: configuration, format, files, and what dtype it stores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagetwin.engine.config import LoadFormat
from pagetwin.engine.errors import ModelError
from pagetwin.engine.weights.json_file import read_json
from pagetwin.engine.weights.shards import find_shards, iterate_shards

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, in Hugging Face terms whatever its format."""

    config: dict[str, Any]
    """Content of config.json; eos_token_id is generation_config.json's where that has one."""
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """Streams every stored tensor once, on the CPU, under its Hugging Face name."""
    dtype: torch.dtype
    """What dtype "auto" means: config.json's, or else that of the first tensor."""
    folder: Path
    """Where tokenizer files are."""


def open_checkpoint(path: Path, load_format: LoadFormat) -> Checkpoint:
    """Look at a folder or a GGUF file; tensors are read when they are asked for."""
    if path.is_dir() and load_format == "gguf":
        path = _only_gguf(path)
    if path.is_file():
        if load_format not in ("auto", "gguf", "dummy"):
            raise ModelError(
                f"{path} is a file, and load_format={load_format!r} needs a folder; name the "
                "folder, or use load_format='auto'"
            )
        # Its library is slow to import, and few models are in one.
        from pagetwin.engine.weights.gguf_file import GGUFFile

        file = GGUFFile(path)
        return Checkpoint(file.hf_config(), file.tensors, file.dtype, path.parent)
    config = _read_config(path)
    if load_format == "dummy":
        return Checkpoint(config, lambda: iter(()), _dtype(config) or torch.float32, path)
    shards = find_shards(path, load_format)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        return iterate_shards(shards)

    dtype = _dtype(config) or next((tensor.dtype for _, tensor in tensors()), None)
    if dtype is None:
        raise ModelError(f"{path} holds no tensor; restore its weights from where they came from")
    return Checkpoint(config, tensors, dtype, path)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} holds no config.json; give a folder in Hugging Face format or a .gguf file"
        )
    config = read_json(path)
    if not isinstance(config.get("architectures"), list) or not config["architectures"]:
        raise ModelError(
            f'{path} names no architecture; add, say, "architectures": ["LlamaForCausalLM"]'
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method")
        raise ModelError(
            f"{path} says that the weights are quantised with {method!r}, which is not supported; "
            "use the model's unquantised weights or a GGUF file"
        )
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = read_json(generation).get("eos_token_id")
        config.update({} if eos is None else {"eos_token_id": eos})
    return config


def _dtype(config: dict[str, Any]) -> torch.dtype | None:
    name = config.get("dtype") or config.get("torch_dtype")
    if name is None:
        return None
    if name not in DTYPES:
        raise ModelError(
            f"dtype {name!r} in config.json is not supported; choose one of {', '.join(DTYPES)} "
            "with the knob model.dtype"
        )
    return DTYPES[name]


def _only_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ModelError(f"{folder} should hold one .gguf file, found {found}; name the file")
    return files[0]
