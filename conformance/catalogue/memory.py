"""Properties of KV memory that are judged from output tokens alone."""

from pagetwin.conformance.capability import Flag, Level
from pagetwin.conformance.catalogue.property import Property

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
)
