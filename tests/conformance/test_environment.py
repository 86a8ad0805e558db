"""What a result says of the code and the machine that it was measured with."""

import subprocess
from pathlib import Path

import pytest

from pagetwin.conformance import environment
from pagetwin.conformance.environment import commit, provenance, sources_sha256


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of a few files where ours have theirs."""
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    for name in ("conformance/environment.py", "engine/step.py", "kernels/deep/norm.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    author = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    git(tmp_path, *author, "commit", "--quiet", "-m", "first")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True)


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    found = commit()
    assert found is not None
    assert len(found.id) == 40
    assert not found.dirty


@pytest.mark.parametrize("name", ["engine/step.py", "kernels/deep/norm.py", "kernels/new.py"])
def test_a_changed_or_new_source_makes_it_dirty_and_another_digest(
    checkout: Path, name: str
) -> None:
    before = sources_sha256()
    (checkout / name).write_text("x = 2\n")
    found = commit()
    assert found is not None
    assert found.dirty
    assert sources_sha256() != before


def test_what_decides_no_measurement_does_not(checkout: Path) -> None:
    before = sources_sha256()
    (checkout / "README.md").write_text("words")
    (checkout / "conformance" / "environment.py").write_text("x = 2\n")
    found = commit()
    assert found is not None
    assert not found.dirty
    assert sources_sha256() == before


def test_a_file_moved_is_other_code(checkout: Path) -> None:
    before = sources_sha256()
    (checkout / "engine" / "step.py").rename(checkout / "engine" / "steps.py")
    assert sources_sha256() != before


def test_a_repository_that_only_surrounds_the_package_is_not_its_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "site-packages"
    installed.mkdir()
    monkeypatch.setattr(environment, "_ROOT", installed)
    assert commit() is None


def test_provenance_names_versions_and_the_machine() -> None:
    found = provenance()
    assert {"python", "torch", "numpy"} <= set(found["versions"])
    assert {"processor", "cores"} <= set(found["machine"])
