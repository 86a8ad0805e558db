"""Decides how a recorded trace of requests is read, and which requests it becomes.

Two public formats, both read line by line:
- CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens, as in the Azure LLM inference
  traces of 2023;
- JSON Lines with timestamp (ms), input_length, output_length and hash_ids, one id for each 512
  prompt tokens, as in the Mooncake traces; equal ids at equal places mean equal prompt prefixes.
"""

import csv
from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import msgspec

from pagetwin.engine.errors import ConfigError, TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

CSV_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
HASHED_TOKENS = 512
"""Prompt tokens that one hash id stands for."""


class TraceEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a trace."""

    arrival_s: float
    """Seconds after the first entry."""
    prompt_tokens: int
    output_tokens: int
    prefix_hashes: tuple[int, ...] = ()
    """One id for each `HASHED_TOKENS` prompt tokens, the last of them partial; empty: unknown."""


class _HashedEntry(msgspec.Struct, frozen=True):
    """A line of the JSON format."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


_decoder = msgspec.json.Decoder(_HashedEntry)


def synthetic_trace_path() -> Path:
    """The small CSV trace that comes with the package; see `simulator.synthetic_trace`."""
    return Path(str(files("pagetwin.simulator"))) / "data" / "synthetic_conversation.csv"


def read_trace(path: Path) -> Iterator[TraceEntry]:
    """Yields the entries of a trace in either format, by suffix: .csv or .jsonl.

    Raises TraceError, naming file and line, on a missing file, missing columns, a cut line, a
    length below 1, a timestamp that goes back, and a file without entries.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise TraceError(f"{path}: suffix {path.suffix!r} is unknown; use .csv or .jsonl")
    if not path.is_file():
        raise TraceError(f"{path}: there is no such file; check the path")
    start: float | None = None
    latest = 0.0
    try:
        for where, seconds, entry in readers[path.suffix](path):
            start = seconds if start is None else start
            _check_entry(where, entry)
            if seconds - start < latest:
                raise TraceError(f"{where}: the timestamp goes back; sort the trace by time")
            latest = seconds - start
            yield msgspec.structs.replace(entry, arrival_s=latest)
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: not CSV text ({error}); the file is damaged") from None
    if start is None:
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


def _read_csv(path: Path) -> Iterator[tuple[str, float, TraceEntry]]:
    """Yields (where, seconds on the trace's own clock, entry with arrival_s still 0)."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        header = tuple(next(rows, ()))
        missing = [name for name in CSV_COLUMNS if name not in header]
        if missing:
            raise TraceError(
                f"{path}:1: the header lacks {', '.join(missing)}; it must name "
                f"{', '.join(CSV_COLUMNS)}"
            )
        places = [header.index(name) for name in CSV_COLUMNS]
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if len(row) != len(header):
                raise TraceError(
                    f"{where}: {len(row)} fields, the header has {len(header)}; "
                    "the line is damaged or cut"
                )
            time, prompt, output = (row[place] for place in places)
            yield (
                where,
                _seconds(where, time),
                TraceEntry(
                    arrival_s=0.0,
                    prompt_tokens=_count(where, CSV_COLUMNS[1], prompt),
                    output_tokens=_count(where, CSV_COLUMNS[2], output),
                ),
            )


def _seconds(where: str, text: str) -> float:
    """Seconds since 1970 of `2023-11-16 18:15:46.6805900`; the fraction has any length."""
    whole, _, fraction = text.partition(".")
    try:
        moment = datetime.strptime(whole + "+0000", "%Y-%m-%d %H:%M:%S%z")
        if fraction and not fraction.isdecimal():
            raise ValueError(fraction)
        return int(moment.timestamp()) + float(f"0.{fraction or 0}")
    except ValueError:
        raise TraceError(
            f"{where}: TIMESTAMP {text!r} is not a time like 2023-11-16 18:15:46.6805900"
        ) from None


def _count(where: str, name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise TraceError(f"{where}: {name} {text!r} is not a whole number of tokens") from None


def _read_jsonl(path: Path) -> Iterator[tuple[str, float, TraceEntry]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                read = _decoder.decode(line)
            except msgspec.DecodeError as error:
                raise TraceError(
                    f"{where}: not an entry with timestamp, input_length, output_length and "
                    f"hash_ids ({error}); the line is damaged or cut"
                ) from None
            entry = TraceEntry(
                arrival_s=0.0,
                prompt_tokens=read.input_length,
                output_tokens=read.output_length,
                prefix_hashes=read.hash_ids,
            )
            yield where, read.timestamp / 1000, entry


def trace_requests(
    entries: Iterable[TraceEntry], *, max_model_len: int, vocab_size: int
) -> Iterator[Request]:
    """Makes a trace's entries into requests `r000000`, `r000001`, ...

    Equal prefix hashes become equal tokens; prompts without hashes share no first block, up to
    chance. Outputs end at their recorded length. A prompt is cut at its end to leave room for
    an output token in `max_model_len`, an output to what is then left. ConfigError if
    `vocab_size` or `max_model_len` is below 2.
    """
    for name, value in (("max_model_len", max_model_len), ("vocab_size", vocab_size)):
        if value < 2:
            raise ConfigError(f"{name}={value} is below 2; a trace needs room for its requests")
    for number, entry in enumerate(entries):
        prompt_tokens = min(entry.prompt_tokens, max_model_len - 1)
        yield Request(
            request_id=f"r{number:06}",
            prompt_token_ids=_prompt(entry, number, prompt_tokens, vocab_size),
            sampling_params=SamplingParams(
                max_tokens=min(entry.output_tokens, max_model_len - prompt_tokens),
                ignore_eos=True,
            ),
            arrival_s=entry.arrival_s,
        )


def _prompt(entry: TraceEntry, number: int, prompt_tokens: int, vocab_size: int) -> tuple[int, ...]:
    """Tokens of each hashed part by its id; without hashes, a part has an id of its own."""
    num_parts = -(-prompt_tokens // HASHED_TOKENS)
    parts = entry.prefix_hashes or tuple(-1 - number for _ in range(num_parts))
    token_ids = (
        _mix(part, place) % vocab_size
        for part in parts[:num_parts]
        for place in range(HASHED_TOKENS)
    )
    return tuple(token_id for token_id, _ in zip(token_ids, range(prompt_tokens), strict=False))


def _mix(part: int, place: int) -> int:
    """A 32-bit number that looks random in both arguments (SplitMix64's finaliser)."""
    x = (part * HASHED_TOKENS + place + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return (x ^ x >> 31) >> 32
