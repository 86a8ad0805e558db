"""Names each mutant that survived and that survivors.toml does not explain; fails if there is one.

A mutant is known by its function and the lines that it changes, not by mutmut's number, which
other changes of the function move.
"""

import fnmatch
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

EXPLAINED = Path(__file__).with_name("survivors.toml")
UNSEEN = ("survived", "no tests", "suspicious", "not checked")
"""Outcomes that no test has spoken on. One that never ends is noticed: by its timeout."""


class Survivor(NamedTuple):
    """A function and what became of it: lines taken out and put in, without their indents."""

    function: str
    removed: str
    added: str


def main(patterns: list[str]) -> int:
    known = {
        Survivor(one["function"], one["removed"], one["added"])
        for one in tomllib.loads(EXPLAINED.read_text())["survivor"]
    }
    unexplained, explained = [], 0
    for line in _mutmut("results").splitlines():
        name, _, outcome = line.strip().rpartition(": ")
        if outcome not in UNSEEN or (patterns and not _matches(name, patterns)):
            continue
        if _survivor(name) in known:
            explained += 1
        else:
            unexplained.append((name, outcome, _survivor(name)))
    for name, outcome, one in unexplained:
        print(f"{outcome}: {name}\n  - {one.removed}\n  + {one.added}")
    print(f"{len(unexplained)} survivors are not explained, {explained} are")
    return int(bool(unexplained))


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _survivor(name: str) -> Survivor:
    removed, added = [], []
    for line in _mutmut("show", name).splitlines():
        if line.startswith("-") and not line.startswith("---"):
            removed.append(line[1:].strip())
        elif line.startswith("+") and not line.startswith("+++"):
            added.append(line[1:].strip())
    function = name.rpartition("__mutmut_")[0]
    return Survivor(function, " ".join(removed), " ".join(added))


def _mutmut(*arguments: str) -> str:
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
