"""When a sequence ends by itself: the stop conditions, in the order of docs/policy.md P5.1."""

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sequence import Sequence
from pagetwin.engine.step import FinishReason

Stop = tuple[FinishReason, int | str | None]


class StopConditions:
    """Judges a sequence after its newest token was appended."""

    def __init__(self, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
        lookahead = scheduler.num_lookahead_slots
        self._pool_tokens = (cache.num_blocks - 1) * cache.block_size - lookahead
        self._max_tokens = min(scheduler.max_model_len, self._pool_tokens + 1)

    def token_limit(self, request: Request) -> int:
        """Tokens, prompt and output, at which max_tokens, M or the pool ends a sequence."""
        max_tokens = request.sampling_params.max_tokens
        if max_tokens is None:
            return self._max_tokens
        return min(self._max_tokens, request.num_prompt_tokens + max_tokens)

    def check(self, seq: Sequence, stop_string: str | None) -> Stop | None:
        """(finish reason, stop reason), or None while the sequence goes on."""
        group = seq.group
        num_tokens = len(seq.token_ids)
        if num_tokens > group.first_stop:
            token = seq.token_ids[-1]
            if token in group.stop_reasons:
                return "stop", group.stop_reasons[token]
            if stop_string is not None:
                return "stop", stop_string
        return ("length", None) if num_tokens >= group.token_limit else None

    def is_capped_by_pool(self, seq: Sequence) -> bool:
        """Whether the pool, not a limit that somebody asked for, ends the sequence."""
        return len(seq.token_ids) > self._pool_tokens
