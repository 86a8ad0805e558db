"""Decides how a request is split between a replica that prefills and one that decodes.

The prefill replica serves the prompt for one output token. Its K/V then go over the link, during
which the source must live; the decode replica takes prompt and first token as a prompt whose
attention is already computed. It takes blocks for all of it at once, and in that step computes
only the last token, as a decode. A sequence that is preempted there comes back in the same way,
as if its K/V had been kept beside: preemptions of a decode pool are too cheap, so watch them.
"""

from typing import Any

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.cluster.description import Link, Pool
from pagetwin.simulator.cost_model import CostModel, DecodeLine, HostTicks, StepComposition
from pagetwin.simulator.token_source import hashed_token


class CarriedPrompts:
    """Costs of a decode replica: of a prompt that came over the link only the last token."""

    def __init__(self, cost_model: CostModel) -> None:
        self._cost_model = cost_model

    def ticks(self, parts: StepComposition) -> int:
        return self._cost_model.ticks(_carried(parts))

    def host_ticks(self, parts: StepComposition) -> HostTicks:
        return self._cost_model.host_ticks(_carried(parts))

    def decode_line(self, num_sequences: int, context: int, num_repeated: int = 0) -> DecodeLine:
        return self._cost_model.decode_line(num_sequences, context, num_repeated)


def _carried(parts: StepComposition) -> StepComposition:
    return msgspec.structs.replace(
        parts,
        num_prefill_sequences=0,
        num_prefill_tokens=0,
        prefill_area=0,
        num_prefix_tokens=0,
        num_decode_sequences=parts.num_decode_sequences + parts.num_prefill_sequences,
        num_context_tokens=parts.num_context_tokens + parts.num_prefill_tokens,
    )


def decode_pool(pool: Pool) -> Pool:
    """The pool with steps that are large enough for prompts to enter whole."""
    scheduler = pool.scheduler
    room = scheduler.max_model_len + scheduler.max_num_seqs
    widened = msgspec.structs.replace(
        scheduler,
        max_num_batched_tokens=max(scheduler.max_num_batched_tokens, room),
        long_prefill_token_threshold=0,
    )
    # Hits would make a carried prompt look shorter than the context that it is.
    cache = msgspec.structs.replace(pool.cache, enable_prefix_caching=False)
    return msgspec.structs.replace(pool, scheduler=widened, cache=cache)


def prefill_part(request: Request) -> Request:
    """The prompt and one token. Raises ConfigError for a request of several samples."""
    if request.num_samples > 1 or request.beam_search is not None:
        raise ConfigError(
            f"request {request.request_id!r} asks for {request.num_samples} samples or beams; "
            "prefill and decode are split for requests of one sample only"
        )
    return msgspec.structs.replace(request, sampling_params=_ends_after(request, 1))


def decode_part(request: Request, max_model_len: int) -> Request | None:
    """What is left after the first token; None if that was all."""
    num_left = (
        max_model_len
        if request.sampling_params.max_tokens is None
        else (request.sampling_params.max_tokens - 1)
    )
    num_left = min(num_left, max_model_len - request.num_prompt_tokens - 1)
    if num_left < 1:
        return None
    return msgspec.structs.replace(
        request,
        prompt_token_ids=(*request.prompt_token_ids, hashed_token(request, 0, 0)),
        sampling_params=_ends_after(request, num_left),
    )


def _ends_after(request: Request, num_tokens: int) -> SamplingParams:
    params: dict[str, Any] = {"max_tokens": num_tokens, "min_tokens": 0, "ignore_eos": True}
    return msgspec.structs.replace(request.sampling_params, **params)


class Uplink:
    """The link of one prefill replica: when a transfer that is asked for now is over."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._free_at = 0

    def done_at(self, num_tokens: int, now: int) -> int:
        """Queues a transfer of the K/V of so many tokens; the tick at which it has arrived."""
        link = self._link
        ticks = to_ticks(num_tokens * link.bytes_per_token / link.bytes_per_s)
        self._free_at = max(now, self._free_at) + ticks
        return self._free_at + to_ticks(link.latency_s)
