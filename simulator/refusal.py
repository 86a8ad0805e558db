"""Decides whether a request can ever start (docs/policy.md P2.5)."""

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import RequestError
from pagetwin.engine.request import Request


def refuse_in_use(request: Request) -> None:
    """Raises RequestError for a request whose id another one still has."""
    raise RequestError(f"request id {request.request_id!r} is in use; give another id")


def refuse_impossible(request: Request, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
    """Raises RequestError for a request that could never start."""
    prompt, samples = len(request.prompt_token_ids), request.num_samples
    usable, lookahead = cache.num_blocks - 1, scheduler.num_lookahead_slots
    where = f"request {request.request_id!r}"
    if prompt == 0:
        raise RequestError(f"{where} has no prompt token; give at least one")
    if prompt + 1 > scheduler.max_model_len:
        raise RequestError(
            f"{where} has {prompt} prompt tokens; with one output token that is over "
            f"max_model_len={scheduler.max_model_len}; shorten the prompt or raise the limit"
        )
    needed = -(-(prompt + max(1, lookahead)) // cache.block_size)
    if needed > usable:
        raise RequestError(
            f"{where} needs {needed} KV blocks for {prompt} prompt tokens and "
            f"{max(1, lookahead)} more; the pool has {usable}; raise num_blocks or shorten it"
        )
    if samples > scheduler.max_num_seqs:
        raise RequestError(
            f"{where} asks for {samples} sequences, over max_num_seqs={scheduler.max_num_seqs}; "
            "ask for fewer or raise the limit"
        )
    if request.beam_search is not None:
        _refuse_beams(request, cache, scheduler)


def _refuse_beams(request: Request, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
    max_tokens = request.sampling_params.max_tokens
    longest = scheduler.max_model_len
    if max_tokens is not None:
        longest = min(longest, request.num_prompt_tokens + max_tokens)
    per_beam = -(-(longest + scheduler.num_lookahead_slots) // cache.block_size)
    needed = request.num_samples * per_beam + cache.watermark_blocks
    if needed > cache.num_blocks - 1:
        raise RequestError(
            f"request {request.request_id!r} needs {needed} KV blocks for {request.num_samples} "
            f"beams of {longest} tokens and the watermark; the pool has {cache.num_blocks - 1}; "
            "raise num_blocks, or lower max_tokens or the beam width"
        )
