"""A history in a hundredth of its size: what was asked, drawn and measured; decisions as digests.

What a scheduler decided follows from its requests, the order of events and the tokens drawn, if
engine and twin agree. So plans and books are left out and only their digests are kept: whoever
expands the file runs the twin, and sees the recorded decisions again or the first one that
differs. Tokens are renamed where they mean nothing (`renaming`). The file is xz over msgpack.
"""

import hashlib
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pagetwin.engine.errors import RequestError, TraceError
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.step import StepPlan, StepResult, StepTimings
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
from pagetwin.simulator.recordings.columns import packed, packed_times, unpacked, unpacked_times
from pagetwin.simulator.recordings.renaming import PrefixNames
from pagetwin.simulator.replica import Replica

SCHEMA = "pagetwin.compact/1"
SUFFIX = ".compact.xz"
DIGEST_BYTES = 8

_TIMINGS = ("prepare_s", "execute_s", "sample_s", "device_s")
_TIMES = ("submit", "plan", "schedule", "result", "update", *_TIMINGS)


class CompactHistory(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content. Columns are as `columns.packed` writes them."""

    schema: str = SCHEMA
    header: HeaderRecord
    source_sha256: str
    """Of the whole history, uncompressed."""
    source_bytes: int
    events: str
    """One letter for each record after the header: s(ubmit), f (refused), a(bort), e (forced
    preemption), x (reset), p(lan), r(esult)."""
    digests: bytes
    """DIGEST_BYTES for each of them, of what the scheduler answered and of its books."""
    requests: tuple[Request, ...]
    """Of submissions and refusals, without their prompts."""
    is_renamed: bool
    """Whether tokens are names (`renaming`)."""
    prompt_lengths: bytes
    prompt_tokens: bytes
    aborts: tuple[str, ...]
    preemptions: tuple[str, ...] = ()
    """Requests of forced ones."""
    tokens: bytes
    """Those drawn, in the order of results and of their plans' rows."""
    irregular: dict[int, ResultRecord]
    """Results with more to them than a token for each row that samples, by number."""
    times: dict[str, bytes]
    graph_sizes: bytes
    eager_reasons: tuple[str, ...]
    reason_numbers: bytes


def answer_digest(record: Record) -> bytes:
    """Of what the scheduler decided: the same for equal decisions and equal books."""
    answer: Any
    if isinstance(record, PlanRecord):
        answer = (_without_tokens(record.plan), record.counters)
    elif isinstance(record, ResultRecord):
        answer = (record.finished, record.forked, record.counters)
    elif isinstance(record, AbortRecord | PreemptRecord):
        answer = (record.found, record.counters)
    elif isinstance(record, ResetRecord):
        answer = (record.done, record.counters)
    elif isinstance(record, SubmitRecord):
        answer = record.counters
    else:
        answer = "refused"
    encoded = msgspec.msgpack.encode(answer)
    return hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).digest()


def _without_tokens(plan: StepPlan) -> StepPlan:
    """The plan without what others decided: the tokens of prompts, and those drawn."""
    return msgspec.structs.replace(
        plan,
        introduced=tuple(
            msgspec.structs.replace(one, token_ids=(len(one.token_ids),)) for one in plan.introduced
        ),
        new_requests=tuple(
            msgspec.structs.replace(one, prompt_token_ids=(one.num_prompt_tokens,))
            for one in plan.new_requests
        ),
    )


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
    times: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _TIMES})
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
            self.sampling[record.plan.step] = _sampling_rows(record.plan)
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
        for name in _TIMINGS:
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


def read_compact(data: bytes, name: str) -> CompactHistory:
    """Raises TraceError, naming the file, if that is not what it holds."""
    try:
        content = msgspec.msgpack.decode(lzma.decompress(data), type=CompactHistory)
    except (lzma.LZMAError, msgspec.DecodeError) as error:
        raise TraceError(f"{name}: not a compact history ({error}); it is damaged") from None
    if content.schema != SCHEMA:
        raise TraceError(
            f"{name}: schema {content.schema!r}, this version reads {SCHEMA!r}; use the pagetwin "
            "version that wrote it"
        )
    return content


class _Expansion:
    """The twin at work: it decides again, and each answer's digest must be the recorded one."""

    def __init__(self, content: CompactHistory, name: str) -> None:
        self._content = content
        self._name = name
        self._twin = Replica(content.header.cache, content.header.scheduler)
        self._requests = _whole_requests(content)
        self._aborts = iter(content.aborts)
        self._preemptions = iter(content.preemptions)
        self._tokens = iter(unpacked(content.tokens))
        self._times = {name: iter(unpacked_times(data)) for name, data in content.times.items()}
        self._graph_sizes = iter(unpacked(content.graph_sizes))
        self._reasons = iter(unpacked(content.reason_numbers))
        self._plans: list[StepPlan] = []
        self._num_results = 0

    def records(self) -> Iterator[Record]:
        yield self._content.header
        make = {
            "s": self._submitted,
            "f": self._submitted,
            "a": self._aborted,
            "e": self._preempted,
            "x": self._reset,
            "p": self._planned,
            "r": self._closed,
        }
        digests = self._content.digests
        for number, letter in enumerate(self._content.events):
            record = make[letter]()
            start = number * DIGEST_BYTES
            if answer_digest(record) != digests[start : start + DIGEST_BYTES]:
                raise TraceError(
                    f"{self._name}: at event {number + 1} ({type(record).__name__}) the twin "
                    f"decided otherwise than the recorded engine; it decided {record!r:.400}"
                )
            yield record

    def _submitted(self) -> Record:
        request = next(self._requests)
        try:
            self._twin.add_request(request)
        except RequestError as error:
            return RefuseRecord(request=request, error=str(error))
        counters = self._twin.counters()
        return SubmitRecord(
            request=request, counters=counters, time_s=_or_none(next(self._times["submit"]))
        )

    def _aborted(self) -> Record:
        request_id = next(self._aborts)
        found = self._twin.abort_request(request_id)
        return AbortRecord(request_id=request_id, found=found, counters=self._twin.counters())

    def _preempted(self) -> Record:
        request_id = next(self._preemptions)
        found = self._twin.preempt_request(request_id)
        return PreemptRecord(request_id=request_id, found=found, counters=self._twin.counters())

    def _reset(self) -> Record:
        done = self._twin.reset_prefix_cache()
        return ResetRecord(done=done, counters=self._twin.counters())

    def _planned(self) -> Record:
        plan = self._twin.schedule()
        if plan is None:
            raise TraceError(f"{self._name}: the twin plans nothing where the engine did")
        self._plans.append(plan)
        return PlanRecord(
            plan=plan,
            counters=self._twin.counters(),
            schedule_s=next(self._times["schedule"]),
            time_s=_or_none(next(self._times["plan"])),
        )

    def _closed(self) -> Record:
        plan = self._plans.pop(0)
        irregular = self._content.irregular.get(self._num_results)
        self._num_results += 1
        if irregular is None:
            sampled = {seq_id: next(self._tokens) for seq_id in _sampling_rows(plan)}
            result = StepResult(step=plan.step, sampled=sampled)
        else:
            result = irregular.to_result()
        timings = StepTimings(
            **{name: next(self._times[name]) for name in _TIMINGS},
            graph_size=next(self._graph_sizes),
            eager_reason=self._content.eager_reasons[next(self._reasons)],
        )
        update = self._twin.update(plan, result)
        return ResultRecord.of(
            msgspec.structs.replace(result, timings=timings),
            update,
            self._twin.counters(),
            update_s=next(self._times["update"]),
            time_s=_or_none(next(self._times["result"])),
        )


def expanded(content: CompactHistory, name: str) -> Iterator[Record]:
    """The history's records, decided anew by the twin; block tables and error texts aside.

    Raises TraceError where the twin decides otherwise than the recorded engine did.
    """
    return _Expansion(content, name).records()


def _whole_requests(content: CompactHistory) -> Iterator[Request]:
    tokens, start = unpacked(content.prompt_tokens), 0
    lengths = unpacked(content.prompt_lengths)
    for request, length in zip(content.requests, lengths, strict=True):
        prompt = tuple(tokens[start : start + length])
        start += length
        yield msgspec.structs.replace(request, prompt_token_ids=prompt)


def _sampling_rows(plan: StepPlan) -> list[str]:
    return [row.seq_id for row in plan.scheduled if row.samples]


def _or_minus_one(time_s: float | None) -> float:
    return -1.0 if time_s is None else time_s


def _or_none(time_s: float) -> float | None:
    return None if time_s < 0 else time_s
