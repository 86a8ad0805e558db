"""The repository's own rules: links, package names, and which folder may import which."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT: dict[str, set[str]] = {
    "kernels": set(),
    "engine": {"kernels"},
    "simulator": {"engine"},
    "conformance": {"engine", "kernels", "simulator"},
    "reports": {"engine", "simulator", "conformance"},
}

# What the simulator shares with the engine: plain data and the users' ordering functions, never a
# line of scheduler or block-manager logic.
VOCABULARY = {
    "config",
    "errors",
    "policies",
    "request",
    "sampling_params",
    "step",
    "trace",
}

TORCH_FREE = [
    "pagetwin.engine.block_manager",
    "pagetwin.engine.core",
    "pagetwin.engine.fingerprint",
    "pagetwin.engine.scheduler",
    "pagetwin.engine.trace",
    "pagetwin.simulator.one_replica",
    "pagetwin.simulator.replica",
    "pagetwin.simulator.simulate",
    "pagetwin.simulator.workloads.trace_files",
    "pagetwin.conformance.lockstep",
    "pagetwin.conformance.scenario",
    "pagetwin.cli",
]


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name below pagetwin) for each of our modules that the file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "pagetwin" and rest:
                yield node.lineno, rest


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    files = sorted((ROOT / folder).rglob("*.py"))
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports pagetwin.{name}; {folder}/ may import {allowed}"
        for path in files
        for line, name in imported_modules(path)
        if name.partition(".")[0] not in allowed
    ]
    assert files
    assert not wrong, "\n".join(wrong)


def test_the_simulator_shares_only_plain_data_with_the_engine() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports pagetwin.{name}"
        for path in sorted((ROOT / "simulator").rglob("*.py"))
        for line, name in imported_modules(path)
        if name.startswith("engine") and name.split(".")[1] not in VOCABULARY
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_each_folder_is_linked_into_the_package(folder: str) -> None:
    link = ROOT / "src" / "pagetwin" / folder
    assert link.is_symlink(), f"{link} must be a link; on Windows set git's core.symlinks"
    assert link.readlink() == Path("..", "..", folder)


def test_nothing_shadows_hugging_face_kernels() -> None:
    """A package named plainly `kernels` on sys.path would hide the one transformers probes."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(ROOT)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_torch_free_half_imports_with_torch_blocked(module: str) -> None:
    script = f"import sys; sys.modules['torch'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_block_in_the_test_above_does_block_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; import pagetwin.engine.model_runner"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "import of torch halted" in done.stderr
