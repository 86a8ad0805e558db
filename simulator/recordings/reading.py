"""Opens whatever a history was kept as: JSON Lines, those under xz or gzip, or compact."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pagetwin.engine.trace import (
    Record,
    RefuseRecord,
    SubmitRecord,
    opened_history,
    read_history,
)
from pagetwin.simulator.recordings.compact import SUFFIX, read_compact
from pagetwin.simulator.recordings.compacting import compacted
from pagetwin.simulator.recordings.expanding import expanded
from pagetwin.simulator.recordings.renaming import may_be_renamed


class Identity(NamedTuple):
    """What a history is, however it is kept."""

    sha256: str
    """Of its plain text."""
    num_bytes: int


def is_compact(path: Path) -> bool:
    return path.name.endswith(SUFFIX)


def read_records(path: Path) -> Iterator[Record]:
    """The records of a history file. Raises TraceError, or OSError."""
    if is_compact(path):
        yield from expanded(read_compact(path.read_bytes(), str(path)), str(path))
    else:
        yield from read_history(path)


def identity(path: Path) -> Identity:
    """The digest and size of a history's plain text; a compact one remembers them."""
    if is_compact(path):
        content = read_compact(path.read_bytes(), str(path))
        return Identity(content.source_sha256, content.source_bytes)
    sha256, num_bytes = hashlib.sha256(), 0
    with opened_history(path) as file:
        while chunk := file.read(2**20):
            sha256.update(chunk)
            num_bytes += len(chunk)
    return Identity(sha256.hexdigest(), num_bytes)


def compact_file(path: Path) -> bytes:
    """The compact form of a history file; tokens are renamed if they mean nothing."""
    what = identity(path)
    rename = all(
        may_be_renamed(record.request)
        for record in read_records(path)
        if isinstance(record, SubmitRecord | RefuseRecord)
    )
    return compacted(
        read_records(path), sha256=what.sha256, num_bytes=what.num_bytes, rename=rename
    )
