"""Each request alone: what the fingerprint engine answers with nobody beside it.

A request's tokens are a function of the request (see engine/fingerprint.py). Here they are
computed on an executor that holds one sequence in consecutive blocks, in one prefill and single
steps, by plans written by hand: no scheduler, no allocator, no cache, no neighbour. Any history of
the same request must show the same tokens.
"""

from collections.abc import Iterator, Sequence

import msgspec

from pagetwin.conformance.properties import Violation
from pagetwin.engine.config import CacheConfig
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.step import IntroducedSequence, ScheduledSequence, StepPlan
from pagetwin.engine.trace import AbortRecord, HeaderRecord, Record, ResultRecord, SubmitRecord

ID = "iso.history-independence"


def tokens_alone(
    request: Request, sample_index: int, count: int, cache: CacheConfig, vocab_size: int
) -> list[int]:
    """The first `count` tokens of one sample of the request, which is no beam search."""
    prompt = len(request.prompt_token_ids)
    num_blocks = 1 + -(-(prompt + count) // cache.block_size)
    ample = msgspec.structs.replace(cache, num_blocks=num_blocks, watermark_blocks=0)
    executor = FingerprintExecutor(ample, vocab_size=vocab_size)
    name = sequence_id(request.request_id, sample_index)
    first = IntroducedSequence(
        seq_id=name,
        request_id=request.request_id,
        sample_index=sample_index,
        token_ids=request.prompt_token_ids,
        block_ids=tuple(range(1, num_blocks)),
    )
    tokens: list[int] = []
    for step in range(count):
        start = prompt + step - 1 if step else 0
        share = ScheduledSequence(name, start, prompt + step - start, samples=True)
        plan = StepPlan(
            step=step,
            scheduled=(share,),
            introduced=() if step else (first,),
            new_requests=() if step else (request,),
        )
        tokens.append(executor.execute(plan).sampled[name])
    return tokens


def plan_alone(
    request: Request, output: Sequence[int], cache: CacheConfig
) -> tuple[StepPlan, CacheConfig]:
    """One step that computes the request's prompt and these tokens, and draws what follows; and
    a pool that has room for it."""
    token_ids = (*request.prompt_token_ids, *output)
    num_blocks = 1 + -(-len(token_ids) // cache.block_size)
    name = sequence_id(request.request_id, 0)
    whole = IntroducedSequence(
        seq_id=name,
        request_id=request.request_id,
        sample_index=0,
        token_ids=token_ids,
        block_ids=tuple(range(1, num_blocks)),
    )
    plan = StepPlan(
        step=0,
        scheduled=(ScheduledSequence(name, 0, len(token_ids), samples=True),),
        introduced=(whole,),
        new_requests=(request,),
    )
    return plan, msgspec.structs.replace(cache, num_blocks=num_blocks, watermark_blocks=0)


def check_alone(records: Sequence[Record], vocab_size: int) -> Iterator[Violation]:
    """Compares every sample in a fingerprint engine's history with the sample alone."""
    header = next(record for record in records if isinstance(record, HeaderRecord))
    requests: dict[str, Request] = {}
    sampled: dict[str, list[tuple[int, int]]] = {}
    ended: set[str] = set()
    """Sequences, and requests that were aborted: what comes for them is late."""
    for record in records:
        if isinstance(record, SubmitRecord):
            requests[record.request.request_id] = record.request
        elif isinstance(record, ResultRecord):
            for seq_id, token in record.sampled.items():
                if seq_id not in ended and seq_id.rpartition("/")[0] not in ended:
                    sampled.setdefault(seq_id, []).append((record.step, token))
            ended.update(one.seq_id for one in record.finished)
        elif isinstance(record, AbortRecord):
            ended.update([record.request_id] if record.found else [])
    for seq_id, tokens in sampled.items():
        request_id, _, index = seq_id.rpartition("/")
        request = requests.get(request_id)
        if request is None or request.beam_search is not None:
            continue
        alone = tokens_alone(request, int(index), len(tokens), header.cache, vocab_size)
        for place, ((step, token), expected) in enumerate(zip(tokens, alone, strict=True)):
            if token != expected:
                witness = (
                    ("seq_id", seq_id),
                    ("output_position", str(place)),
                    ("token", str(token)),
                    ("alone", str(expected)),
                )
                yield Violation(ID, step, "a token differs from that of the request alone", witness)
                break
