"""What the compiler makes of a kernel: registers, spills and shared memory, without a GPU."""

import importlib
import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclass(frozen=True)
class Resources:
    """Per thread: registers and stack bytes; per program: shared bytes."""

    registers: int
    stack_bytes: int
    """Spilled registers live here, so 0 means that nothing was spilled."""
    shared_bytes: int
    opcodes: frozenset[str]
    """Machine instructions without their suffixes, such as HMMA, HGMMA, LDGSTS."""


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    aligned: Collection[str],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 2,
) -> Resources:
    """Compile for a compute capability (80, 90), as a launch with such arguments would.

    `types` gives each argument's Triton type ("*bf16", "i32", "fp32"), `constants` the value of
    each constexpr, `aligned` the arguments that are multiples of 16, which Triton treats apart.
    The kernel must not be interpreted.
    """
    index = {name: i for i, name in enumerate(kernel.arg_names)}
    source_kind = ASTSource
    if kernel.is_gluon():
        source_kind = importlib.import_module("triton.experimental.gluon._runtime").GluonASTSource
    source = source_kind(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in kernel.arg_names},
        constexprs={(index[name],): value for name, value in constants.items()},
        attrs={(index[name],): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    usage = _run_on_cubin("cuobjdump", ["--dump-resource-usage"], compiled.asm["cubin"])
    code = _run_on_cubin("nvdisasm", ["-c"], compiled.asm["cubin"])
    return Resources(
        registers=_number(r"REG:(\d+)", usage),
        stack_bytes=_number(r"STACK:(\d+)", usage),
        shared_bytes=int(compiled.metadata.shared),
        opcodes=frozenset(re.findall(r"/\*[0-9a-f]+\*/\s+(?:@\S+\s+)?([A-Z]\w*)", code)),
    )


def _run_on_cubin(tool: str, options: list[str], cubin: bytes) -> str:
    """Output of one of the CUDA tools that come with Triton."""
    path = getattr(triton.knobs.nvidia, tool).path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [path, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    # There may be a line for what is common to all functions, and it is empty.
    return max(int(number) for number in re.findall(pattern, text))
