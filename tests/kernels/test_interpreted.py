"""Runs the kernels' tests in the interpreter, in a process of their own (see conftest.py)."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def test_the_kernels_tests_pass_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER)],
        cwd=FOLDER.parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for path in FOLDER.glob("test_*.py"):
        if path != Path(__file__) and "device: torch.device" in path.read_text():
            assert f"{path.name} ." in done.stdout, f"{path.name} was not run"
