"""Decides whom a step serves that prefills, where nobody shares anything: P2.1 to P2.4."""

from collections.abc import Iterable

import msgspec

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.simulator.cost_model import StepComposition
from pagetwin.simulator.fast_forward.counted_batch import CountedBatch
from pagetwin.simulator.fast_forward.counted_sequence import CountedSequence
from pagetwin.simulator.limits import blocks_for


class Admission(msgspec.Struct, gc=False):
    """A sequence that joins in a step."""

    seq: CountedSequence
    num_tokens: int
    num_blocks: int


class MixedStep(msgspec.Struct, gc=False):
    """A step that prefills, beside decoding."""

    chunk: CountedSequence | None
    """The sequence that prefills already."""
    num_chunk_tokens: int
    num_chunk_blocks: int
    admitted: list[Admission]

    @property
    def prefills(self) -> bool:
        return self.num_chunk_tokens > 0 or len(self.admitted) > 0


def plan_mixed(
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    batch: CountedBatch,
    chunk: CountedSequence | None,
    waiting: Iterable[CountedSequence],
    num_free: int,
) -> MixedStep | None:
    """The next step; None if `num_free` blocks are too few for those that run."""
    num_running = len(batch)
    num_free -= batch.num_takers()
    budget = scheduler.max_num_batched_tokens - num_running
    chunk_tokens = chunk_blocks = 0
    if chunk is not None:
        num_running += 1
        chunk_tokens = min(chunk.num_prompt_tokens - chunk.num_computed_tokens, budget)
        end = chunk.num_computed_tokens + chunk_tokens
        if chunk_tokens > 0:
            chunk_blocks = max(0, blocks_for(end, cache, scheduler) - len(chunk.block_table))
        budget -= chunk_tokens
        num_free -= chunk_blocks
    if num_free < 0:
        return None
    admitted: list[Admission] = []
    for seq in waiting:
        num_tokens = min(seq.num_prompt_tokens, budget)
        is_whole = num_tokens == seq.num_prompt_tokens
        if num_tokens <= 0 or num_running >= scheduler.max_num_seqs:
            break
        if not is_whole and not scheduler.enable_chunked_prefill:
            break
        num_blocks = blocks_for(num_tokens, cache, scheduler)
        if num_free - num_blocks < (cache.watermark_blocks if num_running else 0):
            break
        num_free -= num_blocks
        budget -= num_tokens
        num_running += 1
        admitted.append(Admission(seq, num_tokens, num_blocks))
    return MixedStep(chunk, chunk_tokens, chunk_blocks, admitted)


def mixed_composition(step: MixedStep, batch: CountedBatch) -> StepComposition:
    """What the step is made of, beside what the batch decodes."""
    num_decoding, context = len(batch), batch.num_context_tokens
    samples = num_decoding
    chunks = tokens = area = prefix = 0
    rows = [(one.seq.num_prompt_tokens, 0, one.num_tokens) for one in step.admitted]
    if step.chunk is not None and step.num_chunk_tokens > 0:
        seq = step.chunk
        rows.append((seq.num_prompt_tokens, seq.num_computed_tokens, step.num_chunk_tokens))
    for prompt, computed, count in rows:
        if count == 1:
            num_decoding += 1
            context += computed + 1
        else:
            chunks += 1
            tokens += count
            prefix += computed
            area += count * computed + count * (count + 1) // 2
        samples += computed + count == prompt
    return StepComposition(
        num_prefill_sequences=chunks,
        num_prefill_tokens=tokens,
        prefill_area=area,
        num_prefix_tokens=prefix,
        num_decode_sequences=num_decoding,
        num_context_tokens=context,
        num_samples=samples,
    )
