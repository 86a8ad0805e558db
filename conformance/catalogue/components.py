"""Properties of the parts that run a step: rows, memory, text. They are judged on the parts
themselves, so all that they ask of an adapter is that the engine is ours."""

from pagetwin.conformance.capability import Flag, Level
from pagetwin.conformance.catalogue.property import Property

PROPERTIES = (
    Property(
        id="batch.rebuild",
        statement="What a runner keeps of each sequence is what a rebuild from full knowledge "
        "gives, after every plan; rows that nobody has are empty.",
        needs=(Flag.COMPONENTS,),
        level=Level.MEMORY,
    ),
    Property(
        id="mem.writes-own-slots",
        statement="A step writes the slots of its own tokens, and padding writes nothing.",
        needs=(Flag.COMPONENTS,),
        level=Level.MEMORY,
    ),
    Property(
        id="text.decoded",
        statement="What a client is shown, joined, is the decoded text of its tokens, up to the "
        "stop string; nothing shown is ever taken back.",
        needs=(Flag.COMPONENTS,),
        level=Level.TEXT,
    ),
    Property(
        id="text.finish-reason",
        statement="Each sample ends once, with the tokens and the reason of its first stop "
        "condition, stop strings included.",
        needs=(Flag.COMPONENTS,),
        level=Level.TEXT,
    ),
)
