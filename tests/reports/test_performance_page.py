"""docs/performance.md and fidelity.md hold no number that is not in a committed result."""

import re
from pathlib import Path

import msgspec
import pytest

from pagetwin.cli import main
from pagetwin.engine.errors import TraceError
from pagetwin.reports.peers import BASELINES
from pagetwin.reports.performance_page import DEVICE_TABLES, TABLES, filled
from pagetwin.reports.results import Version

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in ("performance.md", "fidelity.md")]
VERSION = Version(
    name="1",
    device="h100",
    change="graphs",
    predicted_s={"tiny/single": 0.5},
    measured_s={"tiny/single": 0.75},
    outcome="launches overlap less than thought",
)


def page_of(*names: str) -> str:
    return "\n".join(f"before {n}\n\n<!-- table: {n} -->\nold\n<!-- end -->" for n in names)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_committed_page_agrees_with_the_committed_results(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert filled(page, BASELINES) == page, f"run 'pagetwin bench tables docs/{path.name}'"


def test_the_pages_show_every_table_of_every_device_once() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    named = re.findall(r"<!-- table: (.*?) -->", text)
    measured = {path.name.partition("_")[0] for path in BASELINES.glob("*_offline.json")}
    wanted = {f"{kind} {device}" for device in measured for kind in DEVICE_TABLES} | set(TABLES)
    without = set(re.findall(r"<!-- table: (.*?) -->\n\nNot measured yet", filled_with_all(wanted)))
    assert wanted - without <= set(named)
    assert len(named) == len(set(named))
    assert {name.rpartition(" ")[0] for name in named} >= set(DEVICE_TABLES)


def filled_with_all(names: set[str]) -> str:
    return filled(page_of(*sorted(names)), BASELINES)


def test_a_table_replaces_what_stood_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "versions.json").write_bytes(msgspec.json.encode([VERSION]))
    page = filled(page_of("versions") + "\nafter", tmp_path)
    assert page.startswith("before versions\n")
    assert page.endswith("<!-- end -->\nafter")
    assert "old" not in page
    assert (
        "| 1 | h100 | graphs | launches overlap less than thought | tiny/single | 0.500 | 0.750 |"
        in page
    )
    assert filled(page, tmp_path) == page


def test_a_table_without_its_result_says_so(tmp_path: Path) -> None:
    page = filled(page_of("engine h100"), tmp_path)
    assert "Not measured yet: there is no `h100_offline.json`." in page


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"'engin h100' is unknown; use some of .*engine DEVICE"):
        filled(page_of("engin h100"), tmp_path)


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "h100_offline.json").write_text('{"rows": 3}')
    with pytest.raises(TraceError, match=r"h100_offline\.json"):
        filled(page_of("engine h100"), tmp_path)


def test_the_command_renews_a_page_and_checks_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(page_of("versions"))
    where = ["--baselines", str(tmp_path)]
    assert main(["bench", "tables", str(page), *where, "--check"]) == 1
    assert page.read_text() == page_of("versions")
    assert main(["bench", "tables", str(page), *where]) == 0
    assert main(["bench", "tables", str(page), *where, "--check"]) == 0
    assert "agrees" in capsys.readouterr().out
