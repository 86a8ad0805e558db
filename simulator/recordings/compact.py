"""A history in a hundredth of its size: what was asked, drawn and measured; decisions as digests.

What a scheduler decided follows from its requests, the order of events and the tokens drawn, if
engine and twin agree. So plans and books are left out and only their digests are kept: whoever
expands the file runs the twin, and sees the recorded decisions again or the first one that
differs. Tokens are renamed where they mean nothing (`renaming`). The file is xz over msgpack.
"""

import hashlib
import lzma
from typing import Any

import msgspec

from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.step import StepPlan
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    PlanRecord,
    PreemptRecord,
    Record,
    ResetRecord,
    ResultRecord,
    SubmitRecord,
)

SCHEMA = "pagetwin.compact/1"
SUFFIX = ".compact.xz"
DIGEST_BYTES = 8

TIMINGS = ("prepare_s", "execute_s", "sample_s", "device_s")
"""Fields of `StepTimings` that are kept."""

TIMES = ("submit", "plan", "schedule", "result", "update", *TIMINGS)
"""Keys of `CompactHistory.times`."""


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


def sampling_rows(plan: StepPlan) -> list[str]:
    """Those that a token is drawn for, in order."""
    return [row.seq_id for row in plan.scheduled if row.samples]


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
