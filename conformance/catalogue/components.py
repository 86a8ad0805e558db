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
    Property(
        id="batch.device-tables",
        statement="What a device is sent of block tables and tokens is what the host's rows hold.",
        needs=(Flag.COMPONENTS,),
        level=Level.MEMORY,
    ),
    Property(
        id="num.work-lists",
        statement="A work list of attention has each row read each of its keys once, where they "
        "lie, and shares what it reads among sequences with the same blocks only.",
        needs=(Flag.COMPONENTS,),
        level=Level.MEMORY,
    ),
    Property(
        id="num.families",
        statement="Whatever member of its families a checkpoint makes of the model (rotary angles, "
        "windows, biases, heads, ties), its log-probabilities are those of transformers.",
        needs=(Flag.COMPONENTS,),
        level=Level.SCORES,
    ),
    Property(
        id="text.reported",
        statement="What a client is told beside text is true: each log-probability stands by its "
        "token and is told once, their sum is theirs, the prompt's stand by their positions, of "
        "more samples the likeliest are given, cached tokens are those of the first admission.",
        needs=(Flag.COMPONENTS,),
        level=Level.SCORES,
    ),
    Property(
        id="text.intervals",
        statement="A stream's first token is told in the step that draws it, more as soon as "
        "stream_interval of them wait, an end at once; nothing is told before.",
        needs=(Flag.COMPONENTS,),
        level=Level.TOKENS,
    ),
    Property(
        id="life.as-asked",
        statement="The request that is scheduled is the one that was asked for: the prompt or the "
        "last tokens of it, parameters, arrival, priority, salt, bad words in both forms.",
        needs=(Flag.COMPONENTS,),
        level=Level.TEXT,
    ),
    Property(
        id="search.definition",
        statement="A beam search gives the hypotheses of its definition, best first, with their "
        "scores, ends and texts, whatever runs beside it and however often its beams give way.",
        needs=(Flag.COMPONENTS,),
        level=Level.TOKENS,
    ),
)
