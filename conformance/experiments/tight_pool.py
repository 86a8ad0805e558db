"""Sessions whose KV pool holds a few of the requests only, so that they must give way."""

from random import Random

from pagetwin.conformance.adapters.protocol import Adapter, Session, SessionConfig, SessionRefused
from pagetwin.engine.config import CacheConfig, SchedulerConfig


def tight_pool(
    random: Random,
    *,
    longest: int,
    block_size: int,
    sliding_window: int = 0,
    enable_partial_hits: bool = True,
) -> tuple[CacheConfig, SchedulerConfig]:
    """A pool for one to three sequences of `longest` tokens, and steps that split long prompts."""
    blocks = -(-longest // block_size)
    cache = CacheConfig(
        num_blocks=1 + blocks * random.randint(1, 3) + random.randint(0, 2),
        block_size=block_size,
        sliding_window=sliding_window,
        enable_partial_hits=enable_partial_hits,
    )
    limits = SchedulerConfig(
        max_model_len=longest,
        max_num_seqs=8,
        max_num_batched_tokens=random.choice((32, 64, 256)),
    )
    return cache, limits


def open_tight(
    adapter: Adapter,
    model: str | None,
    knobs: tuple[CacheConfig, SchedulerConfig],
    *,
    vocab_size: int | None = None,
) -> Session:
    """The session that was wanted, or, where the engine chooses for itself, what it gives."""
    cache, limits = knobs
    wanted = SessionConfig(model=model, cache=cache, scheduler=limits, vocab_size=vocab_size)
    try:
        return adapter.open(wanted)
    except SessionRefused:
        return adapter.open(SessionConfig(model=model))
