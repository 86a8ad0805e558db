"""Decides the files of a run: requests and timeline as CSV, and a trace for Perfetto."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pagetwin.simulator.cluster.journeys import Outcome
from pagetwin.simulator.results.result import Result

Column = Sequence[Any] | npt.NDArray[Any]
MAX_DRAWN = 20_000
"""Requests in a Perfetto trace; more are slow to load."""


def write_requests(result: Result, path: Path) -> None:
    """A row for each request in the order of arrival; empty fields are times that did not come."""
    names = [Outcome(value).name.lower() for value in result.requests["outcome"].tolist()]
    columns: dict[str, Column] = {"request_id": result.request_ids, **result.requests}
    columns["outcome"] = names
    columns["reason"] = [result.reasons.get(name, "") for name in result.request_ids]
    _write_csv(path, columns)


def write_timeline(result: Result, path: Path) -> None:
    """A row for each look at the cluster."""
    _write_csv(path, result.timeline)


def write_perfetto(result: Result, path: Path) -> None:
    """Chrome's trace format: a track of each replica with its requests, and counters.

    A request has a slice while it waits and one from its first step to its end; only the first
    `MAX_DRAWN` requests are drawn. Times are in microseconds of virtual time.
    """
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        file.write(b'{"traceEvents":[\n')
        for number, event in enumerate(_events(result)):
            file.write((b",\n" if number else b"") + encoder.encode(event))
        file.write(b"\n]}\n")


def _write_csv(path: Path, columns: Mapping[str, Column]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(_texts(column) for column in columns.values()), strict=True))


def _texts(column: Column) -> Iterator[Any]:
    if not isinstance(column, np.ndarray):
        return iter(column)
    if column.dtype == np.int64:
        return iter(column.tolist())
    return ("" if value != value else f"{value:.9g}" for value in column.tolist())


def _events(result: Result) -> Iterator[dict[str, Any]]:
    for node in result.nodes:
        name = {"name": f"replica {node.number} ({node.pool})"}
        yield {"ph": "M", "name": "process_name", "pid": node.number, "args": name}
    rows = zip(
        result.request_ids,
        *(
            result.requests[name].tolist()
            for name in ("node", "arrival_s", "first_scheduled_s", "first_token_s", "end_s")
        ),
        strict=True,
    )
    for number, (name, node, arrival_s, scheduled_s, token_s, end_s) in enumerate(rows):
        if number == MAX_DRAWN:
            break
        if node < 0 or scheduled_s != scheduled_s:
            continue
        for part, start_s, until_s in (
            ("wait", arrival_s, scheduled_s),
            ("prefill", scheduled_s, token_s),
            ("decode", token_s, end_s),
        ):
            yield from _slice(f"{name} {part}", node, number, start_s, until_s)
    for place, time_s in enumerate(result.timeline["time_s"].tolist()):
        for counter in ("num_waiting", "num_running", "num_held_blocks"):
            value = int(result.timeline[counter][place])
            track = {"ph": "C", "pid": 0, "name": counter, "ts": time_s * 1e6}
            yield track | {"args": {counter: value}}


def _slice(
    name: str, node: int, number: int, start_s: float, until_s: float
) -> Iterator[dict[str, Any]]:
    """An asynchronous slice: those of one replica overlap."""
    common = {"cat": "request", "name": name, "id": number, "pid": node, "tid": 0}
    if until_s > start_s:
        yield common | {"ph": "b", "ts": start_s * 1e6}
        yield common | {"ph": "e", "ts": until_s * 1e6}
