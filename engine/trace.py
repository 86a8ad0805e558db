"""Histories: what an engine run did, line by line, as versioned JSON Lines.

A history is the sequence of events in the order in which they took effect (docs/policy.md
P1.5): a header, then submissions, aborts, forced preemptions, resets, plans and results. Reading
one needs no engine: checkers and the twin work from the file alone.
"""

import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import msgspec

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.step import (
    BeamSelection,
    Counters,
    FinishedSequence,
    StepPlan,
    StepResult,
    StepTimings,
    StepUpdate,
)

SCHEMA = "pagetwin.history/1"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever records a history knows of where its times come from."""

    versions: dict[str, str] = {}
    """Of packages; `sources`: a digest of the engine's code."""
    device: str | None = None
    """The GPU's name, or cpu."""
    dtype: str = ""
    """Of weights and activations."""
    model_config: dict[str, Any] = {}
    """The model's config.json."""


class HeaderRecord(msgspec.Struct, frozen=True, kw_only=True, tag="header"):
    """First line: what was run."""

    schema: str = SCHEMA
    cache: CacheConfig
    scheduler: SchedulerConfig
    engine: str = "pagetwin"
    versions: dict[str, str] = {}
    model: str | None = None
    device: str | None = None
    dtype: str = ""
    model_config: dict[str, Any] = {}
    knobs: dict[str, str] = {}
    """Of the executor: what else its times depend on."""


class SubmitRecord(msgspec.Struct, frozen=True, kw_only=True, tag="submit"):
    """A request was accepted."""

    request: Request
    counters: Counters
    time_s: float | None = None
    """When, on the clock of whoever drove the run; it decided nothing."""


class RefuseRecord(msgspec.Struct, frozen=True, kw_only=True, tag="refuse"):
    """A request was refused at submission."""

    request: Request
    error: str


class AbortRecord(msgspec.Struct, frozen=True, kw_only=True, tag="abort"):
    """An abort was asked for; `found` tells whether the request was alive."""

    request_id: str
    found: bool
    counters: Counters
    time_s: float | None = None


class PreemptRecord(msgspec.Struct, frozen=True, kw_only=True, tag="preempt"):
    """A forced preemption was asked for (P3.5); `found` tells whether the request was running."""

    request_id: str
    found: bool
    counters: Counters
    time_s: float | None = None


class ResetRecord(msgspec.Struct, frozen=True, kw_only=True, tag="reset"):
    """reset_prefix_cache was called; `done` is False while sequences held blocks."""

    done: bool
    counters: Counters


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True, tag="plan"):
    """A step was planned."""

    plan: StepPlan
    counters: Counters
    block_tables: dict[str, tuple[int, ...]] = {}
    """Whole table of each scheduled sequence, where the writer was asked for them."""
    schedule_s: float = 0.0
    time_s: float | None = None


class ResultRecord(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """A step's result took effect."""

    step: int
    sampled: dict[str, int]
    failed: dict[str, str] = {}
    stop_strings: dict[str, str] = {}
    selections: tuple[BeamSelection, ...] = ()
    finished: tuple[FinishedSequence, ...] = ()
    forked: tuple[tuple[str, str], ...] = ()
    counters: Counters
    timings: StepTimings = StepTimings()
    update_s: float = 0.0
    time_s: float | None = None

    @classmethod
    def of(
        cls,
        result: StepResult,
        update: StepUpdate,
        counters: Counters,
        *,
        update_s: float = 0.0,
        time_s: float | None = None,
    ) -> Self:
        """The record of a result that took effect; logprobs are not kept."""
        return cls(
            step=result.step,
            sampled=result.sampled,
            failed=result.failed,
            stop_strings=result.stop_strings,
            selections=result.selections,
            finished=update.finished,
            forked=update.forked,
            counters=counters,
            timings=result.timings,
            update_s=update_s,
            time_s=time_s,
        )

    def to_result(self) -> StepResult:
        """What the executor returned, as far as it was kept."""
        return StepResult(
            step=self.step,
            sampled=self.sampled,
            failed=self.failed,
            stop_strings=self.stop_strings,
            selections=self.selections,
            timings=self.timings,
        )

    def to_update(self) -> StepUpdate:
        """What closing the step changed."""
        return StepUpdate(step=self.step, finished=self.finished, forked=self.forked)


Record = (
    HeaderRecord
    | SubmitRecord
    | RefuseRecord
    | AbortRecord
    | PreemptRecord
    | ResetRecord
    | PlanRecord
    | ResultRecord
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


class HistoryWriter:
    """Appends records to a file, one JSON object a line, or only keeps them in memory."""

    def __init__(
        self, path: Path | None = None, *, keep: bool = False, with_block_tables: bool = False
    ) -> None:
        self.with_block_tables = with_block_tables
        self.origin = Origin()
        """For the header that an engine writes; set it before the engine is made."""
        self.records: list[Record] = []
        self._keep = keep or path is None
        self._file = path.open("wb") if path is not None else None

    def write(self, record: Record) -> None:
        if self._keep:
            self.records.append(record)
        if self._file is not None:
            self._file.write(_encoder.encode(record) + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def opened_history(path: Path) -> IO[bytes]:
    """A history file's plain text, whether or not it is compressed (.xz, .gz)."""
    if path.suffix == ".xz":
        return lzma.open(path)
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    return path.open("rb")


def read_history(path: Path) -> Iterator[Record]:
    """Yields the records of a history file, which may be compressed (.xz, .gz).

    Raises TraceError, naming file and line, on a line that is not a record, a missing header,
    or a schema that this version does not know.
    """
    with opened_history(path) as file:
        for number, line in enumerate(_lines(file, path), start=1):
            try:
                record = _decoder.decode(line)
            except msgspec.DecodeError as error:
                raise TraceError(
                    f"{path}:{number}: not a history record ({error}); the file is damaged or cut"
                ) from None
            if (number == 1) != isinstance(record, HeaderRecord):
                raise TraceError(f"{path}:{number}: the header must be the first line, and only it")
            if isinstance(record, HeaderRecord) and record.schema != SCHEMA:
                raise TraceError(
                    f"{path}:{number}: schema {record.schema!r}, this version reads {SCHEMA!r}; "
                    "use the pagetwin version that wrote it"
                )
            yield record


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise TraceError(
            f"{path}: cannot be decompressed ({error}); it is damaged or cut"
        ) from None
