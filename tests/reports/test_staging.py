"""Staged files: all of them, or none."""

import os
from pathlib import Path

import pytest

from pagetwin.reports.staging import staged


def test_files_appear_together_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staged(out) as folder:
        (folder / "a").write_text("1")
        (folder / "b").write_text("2")
        assert not out.exists()
    assert {path.name: path.read_text() for path in out.iterdir()} == {"a": "1", "b": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def write_half(out: Path) -> None:
    with staged(out) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError("half way")


def test_a_failure_leaves_everything_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        write_half(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "a").read_text() == "old"


def test_a_file_in_its_place_is_an_error_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(NotADirectoryError), staged(out):
        pytest.fail("the body ran")


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with staged(tmp_path) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "mine").read_text() == "kept"
    assert (tmp_path / "a").read_text() == "new"


def test_a_folder_that_is_there_needs_nothing_of_the_one_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a disk of its own: a rename from outside would fail at the end of a long run."""
    moves = []
    replace = os.replace

    def noted(source: Path, target: Path) -> None:
        moves.append((source, target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    with staged(tmp_path) as folder:
        (folder / "a").write_text("new")
    assert [source.parents[1] for source, _ in moves] == [tmp_path]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_where_nothing_may_be_written_it_is_said_before_any_work() -> None:
    with pytest.raises(OSError, match="'/proc'") as caught, staged(Path("/proc/none")):
        pytest.fail("the body ran")
    assert caught.value.filename == "/proc"
