"""The suite as pytest items: one for each property, and no skip that looks like a pass."""

import subprocess
import sys
from pathlib import Path

import pytest

from pagetwin.conformance.properties import CATALOGUE


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # By its entry point, as users have it: an installation made before there was one has none.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
    return subprocess.run(
        [*command, *arguments, "-p", "pagetwin"], cwd=folder, capture_output=True, text=True
    )


def test_each_property_is_an_item_and_unsupported_ones_are_skipped_with_the_reason(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_other.py").write_text("def test_that_is_not_asked_for(): assert False\n")
    done = run_pytest(
        tmp_path,
        *("--pagetwin-engine", "fingerprint:", "--pagetwin-budget", "4"),
        *("-v", "--pagetwin-profile", "default"),
    )
    for property_id in CATALOGUE:
        assert f"{property_id}[fingerprint:]" in done.stdout
    assert "that_is_not_asked_for" not in done.stdout
    assert "kv.conservation[fingerprint:] PASSED" in done.stdout
    assert "mem.provenance[fingerprint:] SKIPPED" in done.stdout
    assert "unsupported: checkpoint: there is no model" in done.stdout
    assert "run.complete[fingerprint:] PASSED" in done.stdout


def test_a_violation_fails_its_item_with_statement_and_witness(tmp_path: Path) -> None:
    (tmp_path / "deaf_engine.py").write_text(
        "from pagetwin.conformance.adapters.without_model import WithoutModelAdapter\n"
        "from pagetwin.engine.scheduler import Scheduler\n"
        "class Deaf(Scheduler):\n"
        "    def abort_request(self, request_id):\n        return False\n"
        "def make():\n    return WithoutModelAdapter('deaf', Deaf)\n"
    )
    done = run_pytest(
        tmp_path, "--pagetwin-engine", "py:deaf_engine:make", "--pagetwin-budget", "4"
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "twin.lockstep on py:deaf_engine:make" in done.stdout
    assert CATALOGUE["twin.lockstep"].statement in done.stdout
    assert "abort" in done.stdout


def test_an_unknown_engine_is_a_usage_error(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "--pagetwin-engine", "nothing:")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "'nothing' is unknown" in done.stderr


def test_without_an_engine_the_plugin_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_one(): pass\n")
    done = run_pytest(tmp_path)
    assert "1 passed" in done.stdout
