"""Provenance checkpoints, written once for all tests of this folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pagetwin.conformance.provenance.checkpoint import write_checkpoint
from pagetwin.conformance.provenance.variants import VARIANTS

CheckpointOf = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> CheckpointOf:
    """The folder of a variant's checkpoint."""
    folder = tmp_path_factory.mktemp("provenance")

    def find(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write_checkpoint(VARIANTS[name], path)

    return find


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """These models are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
