"""Decides how a recorded trace of requests is read: CSV or JSON Lines, a request a line.

Columns are found by name (`columns`), so that the Azure traces of 2023, the Mooncake traces and
the logs of many tools are read as they are. Mooncake's `hash_ids` name each 512 prompt tokens;
equal ids at equal places mean equal prompt prefixes. Both formats are read line by line.
"""

import csv
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from pagetwin.engine.errors import TraceError
from pagetwin.simulator.workloads.columns import Columns, Reading

HASHED_TOKENS = 512
"""Prompt tokens that one hash id stands for."""
SUFFIXES = (".csv", ".jsonl")


class TraceEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a trace."""

    arrival_s: float
    """Seconds after the first entry."""
    prompt_tokens: int
    output_tokens: int
    prefix_hashes: tuple[int, ...] = ()
    """One id for each `HASHED_TOKENS` prompt tokens, the last of them partial; empty: unknown."""
    session: str | None = None


def synthetic_trace_path() -> Path:
    """The small CSV trace that comes with the package; see `simulator.synthetic_trace`."""
    return Path(str(files("pagetwin.simulator"))) / "data" / "synthetic_conversation.csv"


def check_trace_path(path: Path) -> None:
    """Raises TraceError if there is no such file, or its suffix tells of no format."""
    if path.suffix not in SUFFIXES:
        raise TraceError(f"{path}: suffix {path.suffix!r} is unknown; use .csv or .jsonl")
    if not path.is_file():
        raise TraceError(f"{path}: there is no such file; check the path")


def read_trace(path: Path, columns: Columns | None = None) -> Iterator[TraceEntry]:
    """Yields the entries of a trace in either format, by suffix: .csv or .jsonl.

    Raises TraceError, naming file and line, on a missing file, missing columns, a cut line, a
    length below 1, a timestamp that goes back, and a file without entries.
    """
    check_trace_path(path)
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    reading: Reading | None = None
    start = latest = 0.0
    try:
        for where, row in rows:
            if reading is None:
                reading = Reading(columns or Columns(), row, f"{path}:1")
                start = latest = reading.time_s(row, where)
            seconds = reading.time_s(row, where)
            entry = TraceEntry(
                arrival_s=seconds - start,
                prompt_tokens=reading.count(row, "prompt", where),
                output_tokens=reading.count(row, "output", where),
                prefix_hashes=reading.hashes(row, where),
                session=reading.session(row, where),
            )
            _check_entry(where, entry)
            if seconds < latest:
                raise TraceError(f"{where}: the timestamp goes back; sort the trace by time")
            latest = seconds
            yield entry
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: not CSV text ({error}); the file is damaged") from None
    if reading is None:
        raise TraceError(f"{path}: the trace has no entries; the file is empty or was cut")


def _check_entry(where: str, entry: TraceEntry) -> None:
    for name, tokens in (("prompt", entry.prompt_tokens), ("output", entry.output_tokens)):
        if tokens < 1:
            raise TraceError(f"{where}: {tokens} {name} tokens; a request has at least 1 of each")
    needed = -(-entry.prompt_tokens // HASHED_TOKENS)
    if entry.prefix_hashes and len(entry.prefix_hashes) != needed:
        raise TraceError(
            f"{where}: {len(entry.prefix_hashes)} hash ids for {entry.prompt_tokens} prompt "
            f"tokens; there must be {needed}, one for each {HASHED_TOKENS}"
        )


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (file and line, field by column)."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if len(row) != len(header):
                raise TraceError(
                    f"{where}: {len(row)} fields, the header has {len(header)}; "
                    "the line is damaged or cut"
                )
            yield where, dict(zip(header, row, strict=True))


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (file and line, value by key)."""
    decoder = msgspec.json.Decoder(dict[str, Any])
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                yield where, decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise TraceError(
                    f"{where}: not a JSON object ({error}); the line is damaged or cut"
                ) from None
