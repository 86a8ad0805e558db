"""Properties that are judged by holding an engine against its twin."""

from pagetwin.conformance.capability import Flag, Level
from pagetwin.conformance.catalogue.property import Property

PROPERTIES = (
    Property(
        id="twin.lockstep",
        statement=(
            "From the same events the twin makes the same plans, books, block tables and ends, "
            "step by step."
        ),
        needs=(Flag.STEP_TRACE, Flag.POLICY, Flag.COUNTERS, Flag.NOT_THE_TWIN),
        level=Level.STEPS,
        goals=("full hits", "forks", "recompute preemptions", "swap preemptions"),
    ),
    Property(
        id="twin.refinement",
        statement="An engine's steps are steps of abstract paged memory, and its policy, as far as "
        "it promises one, allows them.",
        needs=(Flag.TOKEN_PROMPT, Flag.STEP_TRACE, Flag.BLOCK_TABLES),
        level=Level.STEPS,
        goals=("preemptions", "returns", "hits", "shared blocks"),
    ),
)
