"""Properties that any client can judge: what it asked for, and what it got."""

from pagetwin.conformance.capability import Flag, Level
from pagetwin.conformance.catalogue.property import Property

_TOKENS = (Flag.TOKEN_IDS, Flag.TOKEN_PROMPT)

PROPERTIES = (
    Property(
        id="life.no-crash",
        statement="Nothing that a client may ask for makes the engine raise or end.",
        needs=(),
        level=Level.TEXT,
    ),
    Property(
        id="life.ends",
        statement="Every request that was taken ends, without anybody's help.",
        needs=(),
        level=Level.TEXT,
    ),
    Property(
        id="life.exactly-once",
        statement="Each sample of a request ends once: by itself, cancelled, or refused.",
        needs=(),
        level=Level.TEXT,
        goals=("requests that ended",),
    ),
    Property(
        id="life.silent-after-end",
        statement="After a sample has ended or was cancelled, nothing more of it comes.",
        needs=(Flag.CANCEL,),
        level=Level.TEXT,
        goals=("cancelled while running",),
    ),
    Property(
        id="life.length",
        statement=(
            "No sample has more than max_tokens tokens, and one that ends for its length has "
            "exactly as many, unless the context ends first."
        ),
        needs=_TOKENS,
        level=Level.TOKENS,
        goals=("ends by length",),
    ),
    Property(
        id="life.stop-token",
        statement=(
            "A sample ends at its first stop token after min_tokens, and with reason stop only at "
            "one."
        ),
        needs=(*_TOKENS, Flag.STOP_TOKENS),
        level=Level.TOKENS,
        goals=("ends by stop token",),
    ),
)
