"""Decides which files of a folder hold the weights, and streams the tensors out of them."""

import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pagetwin.engine.config import LoadFormat
from pagetwin.engine.errors import ModelError
from pagetwin.engine.weights.json_file import read_json

_STEMS = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}


def find_shards(folder: Path, load_format: LoadFormat) -> tuple[Path, ...]:
    """The weight files, in order of name: those of an index, else the single file.

    safetensors come before PyTorch files if the format is "auto". ModelError if there are none,
    or if the index names files that are not there.
    """
    stems = [_STEMS[load_format]] if load_format in _STEMS else list(_STEMS.values())
    for stem in stems:
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return _indexed(index)
        if (folder / stem).is_file():
            return (folder / stem,)
    looked_for = " or ".join(f"{stem}[.index.json]" for stem in stems)
    raise ModelError(
        f"{folder} holds no weights: there is no {looked_for}; fetch the model again, or set "
        "load_format"
    )


def _indexed(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map; fetch the model again")
    shards = tuple(index.parent / name for name in sorted(set(weight_map.values())))
    lost = [shard.name for shard in shards if not shard.is_file()]
    if lost:
        raise ModelError(
            f"{len(lost)} of the {len(shards)} files that {index} names are not there: "
            f"{', '.join(lost[:4])}; fetch the model again"
        )
    return shards


def iterate_shards(shards: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of every shard, on the CPU; a name in two shards comes twice.

    ModelError if a file is damaged.
    """
    for shard in shards:
        if shard.suffix == ".safetensors":
            yield from _iterate_safetensors(shard)
        else:
            yield from _iterate_pickle(shard)


def _iterate_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _iterate_pickle(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from None
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path} is not a dictionary of tensors; use the model's weight files")
    yield from content.items()


def _damaged(path: Path, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ModelError(f"{path} is damaged or not of its format: {reason}; fetch the model again")
