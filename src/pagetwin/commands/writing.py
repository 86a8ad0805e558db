"""How commands write one file: it appears under its name at the end, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Where to write the file; it moves to `path` if the body ends well.

    Raises IsADirectoryError at once if `path` is a folder.
    """
    from pagetwin.reports.staging import staged

    if path.is_dir():
        raise IsADirectoryError(21, "is a folder; name a file", str(path))
    with staged(path.parent) as folder:
        yield folder / path.name


@contextmanager
def written_if_named(path: Path | None) -> Iterator[Path | None]:
    """Likewise; None for None."""
    if path is None:
        yield None
    else:
        with written(path) as place:
            yield place


def as_json_document(result: Any) -> bytes:
    """A result for people and diffs: indented, with a newline at the end."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"
