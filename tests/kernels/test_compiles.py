"""The kernels compile for the GPUs they are meant for, and keep their values in registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_variants.py")
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""What one program may have at most, by compute capability."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spills(capability: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(capability)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(done.stdout)
    assert {name: r["stack_bytes"] for name, r in made.items() if r["stack_bytes"]} == {}
    assert not [name for name, r in made.items() if {"STL", "LDL"} & set(r["opcodes"])]
    assert all(r["shared_bytes"] <= SHARED_BYTES[capability] for r in made.values())
    for name, r in made.items():
        assert bool({"HMMA", "HGMMA"} & set(r["opcodes"])) == r["tensor_cores"], name
