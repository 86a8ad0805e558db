"""When a sequence ends by itself: the stop conditions, in the order of docs/policy.md P5.1."""

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.sequence import Sequence
from pagetwin.engine.step import FinishReason

Stop = tuple[FinishReason, int | str | None]


class StopConditions:
    """Judges a sequence after its newest token was appended."""

    def __init__(self, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
        lookahead = scheduler.num_lookahead_slots
        self._pool_tokens = (cache.num_blocks - 1) * cache.block_size - lookahead
        self._max_tokens = min(scheduler.max_model_len, self._pool_tokens + 1)

    def check(self, seq: Sequence, stop_string: str | None) -> Stop | None:
        """(finish reason, stop reason), or None while the sequence goes on."""
        params = seq.params
        num_tokens = len(seq.token_ids)
        if num_tokens - seq.num_prompt_tokens > params.min_tokens:
            token = seq.token_ids[-1]
            if token in seq.group.request.eos_token_ids and not params.ignore_eos:
                return "stop", None
            if token in params.stop_token_ids:
                return "stop", token
            if stop_string is not None:
                return "stop", stop_string
        return ("length", None) if self._is_full(seq, num_tokens) else None

    def ends_with_placeholder(self, seq: Sequence) -> bool:
        """Whether the token that is not known yet is its last, whatever it is (P5.3a)."""
        return self._is_full(seq, seq.num_tokens)

    def is_capped_by_pool(self, seq: Sequence) -> bool:
        """Whether the pool, not a limit that somebody asked for, ends the sequence."""
        return len(seq.token_ids) > self._pool_tokens

    def _is_full(self, seq: Sequence, num_tokens: int) -> bool:
        max_tokens = seq.params.max_tokens
        if max_tokens is not None and num_tokens - seq.num_prompt_tokens >= max_tokens:
            return True
        return num_tokens >= self._max_tokens
