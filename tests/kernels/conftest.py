"""Where the kernels' tests run: on a GPU, or in a process of their own under the interpreter.

Triton decides at import whether kernels are interpreted, and the rest of a test run may have
imported it already, or need it compiled. So the test modules here are collected only where their
kernels can run: in a process started with TRITON_INTERPRET=1, or beside a GPU. A plain run on a CPU
collects test_interpreted.py instead, which starts such a process for each of them.
"""

from pathlib import Path

import pytest
import torch
from triton import knobs

from pagetwin.kernels.interpreter import mend_interpreter

INTERPRETED = bool(knobs.runtime.interpret)
WITHOUT_KERNELS = {
    "test_compile_processes.py",
    "test_compiles.py",
    "test_forked.py",
    "test_interpreted.py",
    "test_reference.py",
}

if INTERPRETED:
    mend_interpreter()

collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if (path.name in WITHOUT_KERNELS and INTERPRETED)
    or (path.name not in WITHOUT_KERNELS and not INTERPRETED and not torch.cuda.is_available())
]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")
