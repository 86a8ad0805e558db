"""Decides the requests that a history of an engine run becomes, to be served again.

Each keeps its prompt, token by token, its samples, priority and salt, and arrives when it was
submitted; it ends after as many tokens as it had then, since no model says when to stop.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.trace import AbortRecord, ResultRecord, SubmitRecord, read_history


def is_history(path: Path) -> bool:
    """Whether the file's first line is the header of a history."""
    with path.open("rb") as file:
        line = file.readline()
    try:
        first = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(first, dict) and first.get("type") == "header"


def recorded_requests(path: Path) -> Iterator[Request]:
    """The accepted requests in the order of submission, the first at time 0.

    The file is read twice, for outputs come after requests. Raises TraceError as `read_history`
    does, and if there is no request.
    """
    longest = _longest_outputs(path)
    start: float | None = None
    latest = 0.0
    for record in read_history(path):
        if isinstance(record, SubmitRecord):
            request = record.request
            time_s = request.arrival_s if record.time_s is None else record.time_s
            start = time_s if start is None else start
            # Submissions are in order; the clock that only labels them might not be.
            latest = max(latest, time_s - start)
            yield _as_recorded(request, longest.get(request.request_id, 1), latest)
    if start is None:
        raise TraceError(f"{path}: the history has no request; nothing would arrive")


def _longest_outputs(path: Path) -> dict[str, int]:
    """Tokens of each request's longest sample."""
    live: dict[str, dict[str, int]] = {}
    longest: dict[str, int] = {}

    def end(request_id: str) -> None:
        counts = live.pop(request_id, {})
        longest[request_id] = max(longest.get(request_id, 1), *counts.values(), 1)

    for record in read_history(path):
        if isinstance(record, ResultRecord):
            for seq_id in record.sampled:
                counts = live.setdefault(seq_id.rpartition("/")[0], {})
                counts[seq_id] = counts.get(seq_id, 0) + 1
        elif isinstance(record, AbortRecord):
            # A token of the step in flight comes too late; counted anew, it is only one.
            end(record.request_id)
    for request_id in list(live):
        end(request_id)
    return longest


def _as_recorded(request: Request, num_output_tokens: int, arrival_s: float) -> Request:
    params = request.sampling_params
    if request.beam_search is None:
        params = msgspec.structs.replace(
            params,
            max_tokens=num_output_tokens,
            min_tokens=0,
            ignore_eos=True,
            stop=(),
            stop_token_ids=(),
        )
    return msgspec.structs.replace(request, sampling_params=params, arrival_s=arrival_s)
