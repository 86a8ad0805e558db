"""Admission: is a request refused exactly if it can never run?"""

from collections.abc import Iterator

from pagetwin.conformance.facts import Facts
from pagetwin.conformance.ledger import Ledger
from pagetwin.conformance.properties import Violation, violation
from pagetwin.engine.request import Request
from pagetwin.engine.trace import Record, RefuseRecord, SubmitRecord

ID = "sched.admission-feasible"


def check_record(record: Record, ledger: Ledger, facts: Facts) -> Iterator[Violation]:
    """Judges sched.admission-feasible."""
    if isinstance(record, SubmitRecord):
        reasons = obstacles(record.request, ledger)
        if reasons:
            yield violation(
                ID,
                ledger.step,
                "a request was accepted that can never run",
                request=record.request.request_id,
                obstacles=reasons,
            )
    elif isinstance(record, RefuseRecord):
        request_id = record.request.request_id
        if not obstacles(record.request, ledger) and not ledger.is_id_in_use(request_id):
            yield violation(
                ID,
                ledger.step,
                "a request was refused that can run",
                request=request_id,
                error=record.error,
            )


def obstacles(request: Request, ledger: Ledger) -> list[str]:
    """Why a request can never start, by docs/policy.md P2.5; empty if it can."""
    cache, limits = ledger.cache, ledger.scheduler
    prompt, ahead = request.num_prompt_tokens, limits.num_lookahead_slots
    usable = cache.num_blocks - 1
    found = []
    if not prompt:
        found.append("no prompt")
    if prompt + 1 > limits.max_model_len:
        found.append("max_model_len")
    if request.num_samples > limits.max_num_seqs:
        found.append("max_num_seqs")
    if -(-(prompt + max(1, ahead)) // cache.block_size) > usable:
        found.append("blocks")
    if request.beam_search is not None:
        longest = limits.max_model_len
        if request.sampling_params.max_tokens is not None:
            longest = min(longest, prompt + request.sampling_params.max_tokens)
        beams = request.num_samples * -(-(longest + ahead) // cache.block_size)
        if beams + cache.watermark_blocks > usable:
            found.append("blocks of the beams")
    return found
