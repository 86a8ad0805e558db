"""Properties of KV memory: judged from output tokens alone, or by looking into the blocks."""

from pagetwin.conformance.capability import Flag, Level
from pagetwin.conformance.catalogue.property import Property

_STEPPED = (
    Flag.TOKEN_IDS,
    Flag.TOKEN_PROMPT,
    Flag.IGNORE_EOS,
    Flag.STEP_TRACE,
    Flag.POLICY,
    Flag.STEP_CONTROL,
    Flag.RESET_CACHE,
)

PROPERTIES = (
    Property(
        id="mem.provenance",
        statement="At every position the KV slot that is read is the one that its own sequence, or "
        "one with the same prefix, wrote there.",
        needs=(Flag.TOKEN_IDS, Flag.TOKEN_PROMPT, Flag.CHECKPOINT),
        level=Level.TOKENS,
        goals=(
            "reads of slots in one prompt",
            "reads of slots in many prompts",
            "reads of generated tokens' slots",
        ),
    ),
    Property(
        id="mem.no-stale-read",
        statement="What stands in blocks that nobody holds and that cache nothing, and behind a "
        "sequence's last token, changes no bit of any answer: NaN is there before every step.",
        needs=(*_STEPPED, Flag.POISON, Flag.BLOCK_TABLES),
        level=Level.MEMORY,
        goals=("poisoned blocks that were taken", "poisoned ends of blocks"),
    ),
    Property(
        id="swap.bytes",
        statement="A block that is swapped out and in again has the same bytes in every layer, "
        "keys and values.",
        needs=(*_STEPPED, Flag.READ_KV, Flag.BLOCK_TABLES),
        level=Level.MEMORY,
        goals=("blocks swapped out", "blocks swapped in"),
    ),
)
