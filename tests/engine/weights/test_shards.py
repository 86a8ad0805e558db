"""However tensors are spread over files, the same ones come out; damage is said, not guessed."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from pagetwin.engine.config import LoadFormat
from pagetwin.engine.errors import ModelError
from pagetwin.engine.weights.shards import find_shards, iterate_shards

TENSORS = {f"layer.{i}.weight": torch.full((i + 1, 3), float(i)) for i in range(6)}
STEMS: dict[LoadFormat, str] = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}


def save(tensors: dict[str, Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def read(folder: Path, load_format: LoadFormat = "auto") -> list[tuple[str, Tensor]]:
    return list(iterate_shards(find_shards(folder, load_format)))


def write_sharded(folder: Path, shard_of: dict[str, str], stem: str) -> None:
    for shard in sorted(set(shard_of.values())):
        save({n: TENSORS[n] for n in TENSORS if shard_of[n] == shard}, folder / shard)
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": shard_of}))


@settings(deadline=None, max_examples=30)
@given(
    load_format=st.sampled_from(list(STEMS)),
    places=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    names=st.permutations(["a", "b", "c", "d"]),
)
def test_spreading_and_naming_shards_changes_nothing(
    load_format: LoadFormat,
    places: list[int],
    names: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("sharded")
    suffix = Path(STEMS[load_format]).suffix
    shard_of = {
        name: f"{names[place]}{suffix}" for name, place in zip(TENSORS, places, strict=True)
    }
    write_sharded(folder, shard_of, STEMS[load_format])
    stream = read(folder)
    assert sorted(name for name, _ in stream) == sorted(TENSORS)
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in stream)


@pytest.mark.parametrize("load_format", STEMS)
def test_one_file_needs_no_index(load_format: LoadFormat, tmp_path: Path) -> None:
    save(TENSORS, tmp_path / STEMS[load_format])
    for asked in ("auto", load_format):
        stream = dict(read(tmp_path, asked))
        assert all(torch.equal(stream[name], TENSORS[name]) for name in TENSORS)


def test_safetensors_come_first_and_the_format_can_be_asked_for(tmp_path: Path) -> None:
    save({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    save({"x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert dict(read(tmp_path))["x"] == 0
    assert dict(read(tmp_path, "safetensors"))["x"] == 0
    assert dict(read(tmp_path, "bin"))["x"] == 1


def test_a_tensor_in_two_shards_comes_twice(tmp_path: Path) -> None:
    write_sharded(tmp_path, dict.fromkeys(TENSORS, "a.safetensors"), "model.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    save({"layer.0.weight": torch.zeros(1, 3)}, tmp_path / "b.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    names = [name for name, _ in read(tmp_path)]
    assert names.count("layer.0.weight") == 2


def test_missing_shards_are_named(tmp_path: Path) -> None:
    shard_of = {name: f"{i}.safetensors" for i, name in enumerate(TENSORS)}
    write_sharded(tmp_path, shard_of, "model.safetensors")
    (tmp_path / "2.safetensors").unlink()
    (tmp_path / "4.safetensors").unlink()
    with pytest.raises(ModelError, match=r"2 of the 6 files .*: 2\.safetensors, 4\.safetensors"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}'])
def test_a_damaged_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json .*fetch the model"):
        read(tmp_path)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.safetensors.* or pytorch_model\.bin"):
        read(tmp_path)
    with pytest.raises(ModelError, match=r"no pytorch_model\.bin\[\.index\.json\];"):
        read(tmp_path, "bin")


@settings(deadline=None, max_examples=40)
@given(load_format=st.sampled_from(list(STEMS)), part=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused_in_one_line(
    load_format: LoadFormat, part: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / STEMS[load_format]
    save(TENSORS, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ModelError) as raised:
        read(path.parent)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"x": Path("not a tensor")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is damaged or not of its format"):
        read(tmp_path)


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is not a dictionary of tensors"):
        read(tmp_path)
