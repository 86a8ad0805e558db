"""What an adapter can do because our scheduler, or its twin, is what it runs."""

from pagetwin.conformance.capability import Flag

SCHEDULER_FLAGS = (
    Flag.TOKEN_IDS,
    Flag.TOKEN_PROMPT,
    Flag.CANCEL,
    Flag.SEED,
    Flag.IGNORE_EOS,
    Flag.STOP_TOKENS,
    Flag.MIN_TOKENS,
    Flag.OWN_EOS,
    Flag.SAMPLES,
    Flag.PRIORITY,
    Flag.CACHE_SALT,
    Flag.CACHED_TOKEN_COUNT,
    Flag.PREFIX_CACHE,
    Flag.RESET_CACHE,
    Flag.STEP_TRACE,
    Flag.BLOCK_TABLES,
    Flag.COPIES,
    Flag.COUNTERS,
    Flag.POLICY,
    Flag.STEP_CONTROL,
    Flag.FORCE_PREEMPT,
    Flag.FORCE_TOKENS,
    Flag.INVARIANT_RUN,
    Flag.INVARIANT_LAYOUT,
)
