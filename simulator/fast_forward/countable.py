"""Decides what can be counted: which knobs, and which requests."""

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import RequestError
from pagetwin.engine.request import Request
from pagetwin.simulator.fast_forward.counted import CountedReplica
from pagetwin.simulator.fast_forward.counted_pool import opening
from pagetwin.simulator.fast_forward.ending import Ending, ending
from pagetwin.simulator.limits import asked_output, pool_output
from pagetwin.simulator.refusal import refuse_impossible, refuse_in_use
from pagetwin.simulator.token_source import ScriptedTokens


def can_count(cache: CacheConfig, scheduler: SchedulerConfig) -> bool:
    """Whether the knobs are such that `CountedReplica` knows what they do."""
    return (
        scheduler.policy == "fcfs"
        and not scheduler.async_scheduling
        and scheduler.long_prefill_token_threshold == 0
        and cache.sliding_window == 0
    )


def ending_of(request: Request, counted: CountedReplica, tokens: ScriptedTokens) -> Ending | None:
    """How the request ends, if it is accepted and can be counted: it is one sequence, nobody
    shares a block with it, and the pool does not cut it short. Once true, that does not change
    but by submissions."""
    cache, scheduler = counted.cache, counted.scheduler
    if request.beam_search is not None or request.sampling_params.num_samples > 1:
        return None
    if refusal_of(request, counted) is not None:
        return None
    if cache.enable_prefix_caching and counted.pool.may_share(opening(request)):
        return None
    longest = asked_output(request, scheduler)
    if longest >= pool_output(request, cache, scheduler):
        return None
    return ending(request, longest, tokens)


def refusal_of(request: Request, counted: CountedReplica) -> str | None:
    """Why the request is refused (P2.5), if it is."""
    try:
        if request.request_id in counted.live:
            refuse_in_use(request)
        refuse_impossible(request, counted.cache, counted.scheduler)
    except RequestError as error:
        return str(error)
    return None
