"""Decides which columns of a trace mean what: by the names that public traces use, or as told."""

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from pagetwin.engine.errors import TraceError

TimeUnit = Literal["s", "ms", "us", "ns"]
SECONDS: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

KNOWN = {
    "arrival": ("TIMESTAMP", "timestamp", "arrived_at", "arrival_time", "arrival_s", "arrival"),
    "prompt": (
        "ContextTokens",
        "input_length",
        "num_prefill_tokens",
        "prompt_tokens",
        "input_tokens",
        "input_toks",
    ),
    "output": (
        "GeneratedTokens",
        "output_length",
        "num_decode_tokens",
        "output_tokens",
        "output_toks",
    ),
    "session": ("session_id", "session"),
    "hashes": ("hash_ids",),
}
"""Names of the Azure, Mooncake and Vidur traces and of common request logs."""
OPTIONAL = ("session", "hashes")


class Columns(msgspec.Struct, frozen=True, kw_only=True):
    """Names of columns; None: the first known name that the trace has."""

    arrival: str | None = None
    prompt: str | None = None
    output: str | None = None
    session: str | None = None
    unit: TimeUnit | None = None
    """Of numeric arrival times; None: milliseconds in a trace with hash_ids, else seconds."""

    def found_in(self, names: Iterable[str], where: str) -> dict[str, str]:
        """Column by meaning. Raises TraceError if one is missing."""
        present = list(names)
        found = {}
        for meaning, known in KNOWN.items():
            asked = getattr(self, meaning, None)
            candidates = known if asked is None else (asked,)
            column = next((name for name in candidates if name in present), None)
            if column is not None:
                found[meaning] = column
            elif asked is not None or meaning not in OPTIONAL:
                raise TraceError(
                    f"{where}: the trace lacks {' or '.join(candidates)}, its {meaning} column; "
                    f"it has {', '.join(present) or 'none'}; name it, as in "
                    f"--workload trace:file=FILE,{meaning}=COLUMN"
                )
        return found


class Reading:
    """Reads the fields of rows that all have the same columns."""

    def __init__(self, columns: Columns, names: Iterable[str], where: str) -> None:
        self._columns = columns.found_in(names, where)
        unit: TimeUnit = "ms" if "hashes" in self._columns else "s"
        self._seconds = SECONDS[columns.unit or unit]

    def time_s(self, row: Mapping[str, Any], where: str) -> float:
        """Seconds on the trace's own clock; a numeric time, or one like 2023-11-16 18:15:46.68."""
        name, value = self._value(row, "arrival", where)
        try:
            seconds = float(value) * self._seconds
        except (TypeError, ValueError):
            return moment_s(str(value), name, where)
        if not math.isfinite(seconds):
            raise TraceError(f"{where}: {name} {value!r} is not a time")
        return seconds

    def count(self, row: Mapping[str, Any], meaning: str, where: str) -> int:
        name, value = self._value(row, meaning, where)
        try:
            # Text is converted; a number of JSON must be whole as it is.
            if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
                return int(value)
            raise ValueError(value)
        except ValueError:
            raise TraceError(f"{where}: {name} {value!r} is not a whole number of tokens") from None

    def session(self, row: Mapping[str, Any], where: str) -> str | None:
        if "session" not in self._columns:
            return None
        return str(self._value(row, "session", where)[1])

    def hashes(self, row: Mapping[str, Any], where: str) -> tuple[int, ...]:
        if "hashes" not in self._columns:
            return ()
        name, value = self._value(row, "hashes", where)
        if isinstance(value, list) and all(isinstance(one, int) and one >= 0 for one in value):
            return tuple(value)
        raise TraceError(f"{where}: {name} {value!r} is not a list of numbers from 0 upwards")

    def _value(self, row: Mapping[str, Any], meaning: str, where: str) -> tuple[str, Any]:
        name = self._columns[meaning]
        if name not in row:
            raise TraceError(f"{where}: the line lacks {name}; it is damaged or cut")
        return name, row[name]


def moment_s(text: str, name: str, where: str) -> float:
    """Seconds since 1970 of `2023-11-16 18:15:46.6805900`; the fraction has any length."""
    whole, _, fraction = text.replace("T", " ").removesuffix("Z").partition(".")
    try:
        moment = datetime.strptime(whole + "+0000", "%Y-%m-%d %H:%M:%S%z")
        if fraction and not fraction.isdecimal():
            raise ValueError(fraction)
        return int(moment.timestamp()) + float(f"0.{fraction or 0}")
    except ValueError:
        raise TraceError(
            f"{where}: {name} {text!r} is not a time; give a number or one like "
            "2023-11-16 18:15:46.6805900"
        ) from None
