"""docs/mutants.md and the README hold what the committed result says, and nothing else."""

from pathlib import Path

import msgspec

from pagetwin.conformance.mutants.catalogue import MUTANTS
from pagetwin.conformance.mutants.kill import KillMatrix
from pagetwin.reports.mutants_page import RESULT, render_mutants_page

ROOT = Path(__file__).parents[2]


def test_the_page_and_the_readme_say_what_the_committed_result_says() -> None:
    matrix = msgspec.json.decode((ROOT / RESULT).read_bytes(), type=KillMatrix)
    assert render_mutants_page(matrix) == (ROOT / "docs/mutants.md").read_text()
    known = {one.id for one in matrix.mutants} | set(matrix.not_measured)
    assert {one.id for one in MUTANTS} <= known
    readme = (ROOT / "README.md").read_text()
    assert all(one.id in readme for one in matrix.survivors)
    assert not matrix.false_alarms
    assert matrix.seeds >= 20
