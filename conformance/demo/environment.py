"""Where a run took place: the versions and the machine that its numbers belong to."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("pagetwin", "torch", "transformers", "numpy", "msgspec", "simpy")


def versions() -> dict[str, str]:
    """Python and the packages that a result may depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "from its sources, not installed"
    return found


def machine(num_threads: int) -> dict[str, str]:
    """The processor and what of it this process may use."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "torch threads": str(num_threads),
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
