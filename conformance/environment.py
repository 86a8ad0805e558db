"""Where a run took place: the code, the versions and the machine that its numbers belong to."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

_PACKAGES = ("pagetwin", "torch", "triton", "transformers", "numpy", "msgspec", "simpy")
_ROOT = Path(__file__).resolve().parent.parent

SOURCES = ("engine", "kernels")
"""The folders that decide what a measurement measures."""


class Commit(msgspec.Struct, frozen=True):
    """A git commit; `dirty` if a Python file of SOURCES differs from it or is not in it."""

    id: str
    dirty: bool


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What every committed result says of itself; `provenance` fills it in."""

    version: str
    """Of this package."""
    commit: Commit | None
    sources_sha256: str
    machine: dict[str, str]
    versions: dict[str, str]


def provenance() -> dict[str, Any]:
    """The fields of Measured, here and now."""
    import torch

    return {
        "version": versions()["pagetwin"],
        "commit": commit(),
        "sources_sha256": sources_sha256(),
        "machine": machine(torch.get_num_threads()) | gpu(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Python and the packages that a result may depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "from its sources, not installed"
    return found


def machine(num_threads: int | None = None) -> dict[str, str]:
    """The processor and what of it this process may use; `num_threads` where torch is used."""
    threads = {} if num_threads is None else {"torch threads": str(num_threads)}
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        **threads,
        "system": platform.platform(),
    }


def gpu() -> dict[str, str]:
    """The first GPU and its driver; empty without one."""
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "multiprocessors": str(properties.multi_processor_count),
        "driver": _output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader,nounits"
        )
        or "unknown",
        "cuda": str(torch.version.cuda),
    }


def commit(folders: Sequence[str] = SOURCES) -> Commit | None:
    """The commit that the running sources are of; None where they are in no git repository.

    `dirty` is about the Python files of `folders`.
    """
    # A checkout of something else may surround an installed package: it does not track this file.
    if not _git("ls-files", "--error-unmatch", "conformance/environment.py"):
        return None
    paths = [f":(glob){folder}/**/*.py" for folder in folders]
    changed = _git("status", "--porcelain", "--", *paths)
    return Commit(_git("rev-parse", "HEAD"), bool(changed))


def sources_sha256() -> str:
    """Of the Python files of SOURCES, paths and contents: equal digests, equal code.

    For machines that hold the sources without their repository.
    """
    sha256 = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            content = path.read_bytes()
            name = path.relative_to(_ROOT).as_posix()
            sha256.update(f"{name}\0{len(content)}\0".encode() + content)
    return sha256.hexdigest()


def _git(*arguments: str) -> str:
    return _output("git", "-C", str(_ROOT), *arguments)


def _output(*command: str) -> str:
    """A command's output, stripped; nothing if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
