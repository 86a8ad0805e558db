"""Decides how long an output may get (docs/policy.md P5.1a), and what a length needs."""

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request


def longest_output(request: Request, cache: CacheConfig, scheduler: SchedulerConfig) -> int:
    """Output tokens at which a limit on the length ends a sequence of the request."""
    return min(asked_output(request, scheduler), pool_output(request, cache, scheduler))


def asked_output(request: Request, scheduler: SchedulerConfig) -> int:
    """Output tokens at which max_tokens or max_model_len ends it."""
    longest = scheduler.max_model_len - len(request.prompt_token_ids)
    max_tokens = request.sampling_params.max_tokens
    return longest if max_tokens is None else min(longest, max_tokens)


def pool_output(request: Request, cache: CacheConfig, scheduler: SchedulerConfig) -> int:
    """Output tokens at which the pool ends it: the first that, with the lookahead, do not fit."""
    usable_tokens = (cache.num_blocks - 1) * cache.block_size
    return usable_tokens - scheduler.num_lookahead_slots + 1 - len(request.prompt_token_ids)


def blocks_for(num_tokens: int, cache: CacheConfig, scheduler: SchedulerConfig) -> int:
    """Blocks that `num_tokens` and the lookahead slots need (P2.2)."""
    return -(-(num_tokens + scheduler.num_lookahead_slots) // cache.block_size)
