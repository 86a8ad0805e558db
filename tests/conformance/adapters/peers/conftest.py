"""Other engines: models for them, and tests that are skipped where they are not installed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pagetwin.conformance.provenance.checkpoint import write_checkpoint
from pagetwin.conformance.provenance.recipe import ProvenanceRecipe


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A provenance checkpoint, as good as any small model."""
    folder = tmp_path_factory.mktemp("peer") / "checkpoint"
    return write_checkpoint(ProvenanceRecipe(), folder)


@pytest.fixture(scope="package")
def vllm_python() -> str:
    """The interpreter named by PAGETWIN_VLLM_PYTHON."""
    python = os.environ.get("PAGETWIN_VLLM_PYTHON", "")
    if not python:
        pytest.skip("PAGETWIN_VLLM_PYTHON names no interpreter of an environment with vLLM")
    return python


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """These models are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
