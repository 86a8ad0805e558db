"""What processes compile ahead, this one finds on disk; what they do not, it compiles itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("compile_in_processes.py")


def compiled(how: str, cache: Path) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), how],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_all_but_the_first_kernel_are_compiled_by_other_processes(tmp_path: Path) -> None:
    """A launcher, too, is made once for each list of types, and found again."""
    found = compiled("work", tmp_path)
    assert found["cold"] == {"add_kernel": [False, *8 * [True]], "copy_kernel": 3 * [True]}
    assert found["warm"] == {"add_kernel": 9 * [True], "copy_kernel": 3 * [True]}
    assert found["warnings"] == []
    launchers = found["launchers"]
    assert len(launchers) == 6
    assert sorted(launchers[:3]) == sorted(launchers[3:])
    assert len(set(map(tuple, launchers))) == 3
    again = compiled("work", tmp_path)
    assert again["cold"] == found["warm"], "another start finds them, too"


@pytest.mark.parametrize(("how", "warning"), [("die", ""), ("hang", "took over 0.5 s")])
def test_where_the_others_fail_it_compiles_by_itself(
    how: str, warning: str, tmp_path: Path
) -> None:
    found = compiled(how, tmp_path)
    assert found["cold"] == {"add_kernel": 9 * [False], "copy_kernel": 3 * [False]}
    assert found["warm"] == {"add_kernel": 9 * [True], "copy_kernel": 3 * [True]}
    assert [warning in one for one in found["warnings"]] == ([True] if warning else [])
