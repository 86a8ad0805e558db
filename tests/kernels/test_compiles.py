"""The kernels compile for the GPUs they are meant for, and keep their values in registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

SCRIPT = Path(__file__).with_name("compile_variants.py")
KNOWN_SPILLS = (
    {}
    if triton.__version__.startswith("3.6.")
    else {"paged_prefill_hopper 128 16 True False": 8, "paged_decode_hopper 128 7 fp16 48": 8}
)
"""Bytes that a thread keeps in memory, by kernel: one value of two kernels, not under the Triton
that launch shapes are tuned for."""
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
    spilled = {name: r["stack_bytes"] for name, r in made.items() if r["stack_bytes"]}
    assert {name: n for name, n in spilled.items() if n > KNOWN_SPILLS.get(name, 0)} == {}
    local = {name for name, r in made.items() if {"STL", "LDL"} & set(r["opcodes"])}
    assert local <= set(KNOWN_SPILLS)
    assert all(r["shared_bytes"] <= SHARED_BYTES[capability] for r in made.values())
    for name, r in made.items():
        assert bool({"HMMA", "HGMMA"} & set(r["opcodes"])) == r["tensor_cores"], name
