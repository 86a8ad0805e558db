"""docs/conformance.md and docs/adding_an_adapter.md say what is so."""

import re
from pathlib import Path

import pytest

from pagetwin.cli import main
from pagetwin.conformance.adapters.spec import KINDS, make_adapter
from pagetwin.conformance.suite.evidence import Status
from pagetwin.conformance.suite.profiles import find_profile
from pagetwin.conformance.suite.runner import RunOptions, SuiteRun
from pagetwin.reports.catalogue_page import with_catalogue

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def test_the_catalogue_on_the_page_is_the_catalogue() -> None:
    page = (DOCS / "conformance.md").read_text()
    assert page == with_catalogue(page), (
        "run: python -m pagetwin.reports.catalogue_page docs/conformance.md"
    )


def test_every_status_and_kind_of_engine_is_on_the_page() -> None:
    page = (DOCS / "conformance.md").read_text()
    for status in Status:
        assert f"| `{status}` |" in page
    for kind in KINDS.values():
        assert kind.form.split(":")[0] in page


def test_the_adapter_on_the_page_keeps_its_claims_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "adding_an_adapter.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "echo_engine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    spec = "py:echo_engine:Echo"
    assert f"pagetwin adapter-check {spec}" in page
    assert main(["adapter-check", spec]) == 0
    options = RunOptions(
        spec=spec, profile=find_profile("default"), budget_s=300, max_examples=4, seed=1
    )
    result = SuiteRun(make_adapter(spec), options).run()
    statuses = {one.property_id: one.status for one in result.results}
    assert statuses["life.exactly-once"] == statuses["life.length"] == Status.PASS
    assert statuses["life.stop-token"] == Status.UNSUPPORTED
    assert not [one for one in result.results if one.status in (Status.FAIL, Status.ERROR)]
