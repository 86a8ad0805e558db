"""Decides what of a history's records is kept, and in which columns."""

import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.step import StepTimings
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    PlanRecord,
    PreemptRecord,
    Record,
    RefuseRecord,
    ResetRecord,
    ResultRecord,
    SubmitRecord,
)
from pagetwin.simulator.recordings.columns import packed, packed_times
from pagetwin.simulator.recordings.compact import (
    TIMES,
    TIMINGS,
    CompactHistory,
    answer_digest,
    sampling_rows,
)
from pagetwin.simulator.recordings.renaming import PrefixNames

_LETTERS: dict[type, str] = {
    SubmitRecord: "s",
    RefuseRecord: "f",
    AbortRecord: "a",
    PreemptRecord: "e",
    ResetRecord: "x",
    PlanRecord: "p",
    ResultRecord: "r",
}


@dataclass
class _Columns:
    """What is collected while a history streams by."""

    names: PrefixNames | None
    """To rename tokens; None keeps them."""
    nodes: dict[str, int] = field(default_factory=dict)
    """By sequence, where its tokens lead."""
    events: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    aborts: list[str] = field(default_factory=list)
    preemptions: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    irregular: dict[int, ResultRecord] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TIMES})
    graph_sizes: list[int] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    reason_numbers: list[int] = field(default_factory=list)
    sampling: dict[int, list[str]] = field(default_factory=dict)
    """Rows that sample, by step in flight."""

    def add(self, record: Record) -> None:
        self.events.append(_LETTERS[type(record)])
        self.digests.append(answer_digest(record))
        if isinstance(record, SubmitRecord | RefuseRecord):
            request = record.request
            self.requests.append(msgspec.structs.replace(request, prompt_token_ids=()))
            self.lengths.append(len(request.prompt_token_ids))
            name = sequence_id(request.request_id, 0)
            self.prompts.extend(self._named(name, request.prompt_token_ids, is_new=True))
        if isinstance(record, SubmitRecord):
            self.times["submit"].append(_or_minus_one(record.time_s))
        elif isinstance(record, AbortRecord):
            self.aborts.append(record.request_id)
        elif isinstance(record, PreemptRecord):
            self.preemptions.append(record.request_id)
        elif isinstance(record, PlanRecord):
            self.sampling[record.plan.step] = sampling_rows(record.plan)
            self.times["plan"].append(_or_minus_one(record.time_s))
            self.times["schedule"].append(record.schedule_s)
        elif isinstance(record, ResultRecord):
            self._add_result(record)

    def _named(self, seq_id: str, tokens: Sequence[int], *, is_new: bool = False) -> Sequence[int]:
        if self.names is None:
            return tokens
        node = 0 if is_new else self.nodes[seq_id]
        self.nodes[seq_id], names = self.names.follow(node, tokens)
        return names

    def _add_result(self, record: ResultRecord) -> None:
        rows = self.sampling.pop(record.step)
        has_more = record.failed or record.stop_strings or record.selections
        if has_more or list(record.sampled) != rows:
            self.irregular[len(self.reason_numbers)] = msgspec.structs.replace(
                record, finished=(), forked=(), timings=StepTimings()
            )
        else:
            for seq_id, token in record.sampled.items():
                self.tokens.extend(self._named(seq_id, (token,)))
        timings = record.timings
        self.times["result"].append(_or_minus_one(record.time_s))
        self.times["update"].append(record.update_s)
        for name in TIMINGS:
            self.times[name].append(getattr(timings, name))
        self.graph_sizes.append(timings.graph_size)
        number = self.reasons.setdefault(timings.eager_reason, len(self.reasons))
        self.reason_numbers.append(number)


def compacted(
    records: Iterable[Record], *, sha256: str, num_bytes: int, rename: bool = False
) -> bytes:
    """The compact file of a history whose plain text has that digest and size.

    `rename` tokens only if all its requests may be (`renaming.may_be_renamed`). Raises TraceError
    if there is no header.
    """
    header: HeaderRecord | None = None
    columns = _Columns(PrefixNames() if rename else None)
    for record in records:
        if isinstance(record, HeaderRecord):
            header = record
        else:
            columns.add(record)
    if header is None:
        raise TraceError("the history has no header; its first record must say what was run")
    content = CompactHistory(
        header=header,
        source_sha256=sha256,
        source_bytes=num_bytes,
        events="".join(columns.events),
        digests=b"".join(columns.digests),
        requests=tuple(columns.requests),
        is_renamed=rename,
        prompt_lengths=packed(columns.lengths),
        prompt_tokens=packed(columns.prompts),
        aborts=tuple(columns.aborts),
        preemptions=tuple(columns.preemptions),
        tokens=packed(columns.tokens),
        irregular=columns.irregular,
        times={name: packed_times(seconds) for name, seconds in columns.times.items()},
        graph_sizes=packed(columns.graph_sizes),
        eager_reasons=tuple(columns.reasons),
        reason_numbers=packed(columns.reason_numbers),
    )
    return lzma.compress(msgspec.msgpack.encode(content), preset=9)


def _or_minus_one(time_s: float | None) -> float:
    return -1.0 if time_s is None else time_s
