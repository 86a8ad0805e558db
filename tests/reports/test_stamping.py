"""A result measured away from the repository gets its commit only if the sources prove it."""

from pathlib import Path

import msgspec
import pytest

from pagetwin.cli import main
from pagetwin.conformance.environment import Commit
from pagetwin.reports import stamping

HERE = Commit("c" * 40, dirty=False)


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stamping, "commit", lambda: HERE)
    monkeypatch.setattr(stamping, "sources_sha256", lambda: "s1")
    path = tmp_path / "result.json"
    path.write_bytes(
        b'{"schema": "x", "commit": null, "sources_sha256": "s1", "rows": [{"us": 1.5}]}'
    )
    return path


def test_the_commit_is_all_that_changes(result: Path) -> None:
    before = msgspec.json.decode(result.read_bytes())
    assert main(["bench", "stamp", str(result)]) == 0
    after = msgspec.json.decode(result.read_bytes())
    assert after == before | {"commit": {"id": HERE.id, "dirty": False}}
    assert list(after) == list(before)


@pytest.mark.parametrize(
    ("sources", "here", "named"),
    [
        ("s2", HERE, "other sources"),
        ("s1", Commit("c" * 40, dirty=True), "not committed"),
        ("s1", None, "not committed"),
    ],
)
def test_other_sources_or_uncommitted_ones_are_refused(
    result: Path,
    sources: str,
    here: Commit | None,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stamping, "commit", lambda: here)
    monkeypatch.setattr(stamping, "sources_sha256", lambda: sources)
    before = result.read_bytes()
    assert main(["bench", "stamp", str(result)]) == 2
    assert named in capsys.readouterr().err
    assert result.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": 1}'])
def test_what_is_no_result_is_refused(
    result: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    result.write_bytes(content)
    assert main(["bench", "stamp", str(result)]) == 2
    assert "not a result" in capsys.readouterr().err
