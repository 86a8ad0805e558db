"""Properties that are judged from the records of an engine's steps (checkers/)."""

from pagetwin.conformance.capability import Flag, Level
from pagetwin.conformance.catalogue.property import Property

_RECORDS = (Flag.STEP_TRACE, Flag.POLICY)
_BOOKS = (*_RECORDS, Flag.COUNTERS)
_TABLES = (*_RECORDS, Flag.BLOCK_TABLES)


def _row(
    property_id: str, statement: str, *goals: str, needs: tuple[Flag, ...] = _RECORDS
) -> Property:
    return Property(
        id=property_id, statement=statement, needs=needs, level=Level.STEPS, goals=goals
    )


PROPERTIES = (
    _row("history.readable", "A history can be followed: it names only what it has introduced."),
    _row(
        "kv.conservation",
        "After every event the free blocks, host ones too, are those that nothing holds.",
        "empty pools",
        "evictions",
        needs=_BOOKS,
    ),
    _row("kv.takes-free", "A block that a step takes was free.", "evictions"),
    _row("kv.null-block", "The null block is never issued, copied or written; ids stay in range."),
    _row(
        "kv.no-leak",
        "With no live request and nothing in flight, every block is free.",
        "aborts in decode",
        needs=_BOOKS,
    ),
    _row("kv.exclusive-write", "A block that a step writes has one holder.", "forks"),
    _row("kv.table-covers", "A scheduled sequence holds ceil((c + n + K) / B) table entries."),
    _row(
        "kv.tables-recorded",
        "Recorded and introduced block tables are those that the plans' changes make.",
        needs=_TABLES,
    ),
    _row(
        "cow.isolation",
        "A block with other holders is copied before it is written, and only then: at every "
        "position a step reads what its own sequence computed there.",
        "copy-on-write copies",
    ),
    _row(
        "cow.copies",
        "A step's copies are those of its replaced entries and partial hits, each destination "
        "once and none a source.",
        "copy-on-write copies",
        "partial hits",
    ),
    _row(
        "cow.fork-once",
        "A group forks once, into all of its samples, when its prompt is done.",
        "forks",
    ),
    _row(
        "cache.hit-implies-equal",
        "A hit's blocks hold the request's own tokens, salt, adapter and media.",
        "full hits",
    ),
    _row(
        "cache.equal-implies-hit",
        "A hit is the longest cached run of full blocks that is allowed.",
        "full hits",
        "hits of a returning sequence's own blocks",
    ),
    _row(
        "cache.partial-hit",
        "A partial hit is the longest one that executed, full blocks give.",
        "partial hits",
    ),
    _row(
        "cache.accounting",
        "Cached blocks, hits and evictions are those that the steps made.",
        "full hits",
        "evictions",
        needs=_BOOKS,
    ),
    _row(
        "cache.last-token-recompute",
        "An admission computes at least one token.",
        "hits at a block edge but for the last token",
    ),
    _row(
        "cache.reset",
        "A reset fails exactly while blocks are held; after it nothing hits.",
        "resets done",
        "resets refused",
        needs=(*_RECORDS, Flag.STEP_CONTROL, Flag.RESET_CACHE),
    ),
    _row(
        "preempt.clean",
        "A preempted sequence ran, is not in that step, and its row is dropped.",
        "recompute preemptions",
        "swap preemptions",
    ),
    _row(
        "preempt.resume-complete",
        "A sequence returns with all of its tokens, and computes what it lost.",
        "returns after recompute",
        "swap-ins",
    ),
    _row(
        "swap.round-trip",
        "Swapping saves and restores each block: source, destination, content.",
        "swap-ins",
    ),
    _row(
        "preempt.victim",
        "The victim is a resting beam that cannot go on, else the last in order.",
        "recompute preemptions",
    ),
    _row(
        "preempt.justified",
        "Nothing is preempted while a step is in flight, nor beside admissions.",
        "recompute preemptions",
        "plans with a step in flight",
    ),
    _row(
        "preempt.forced",
        "A forced preemption takes all that runs of the request, first of all in the next plan; "
        "with a step in flight no plan is made before that.",
        "forced recompute preemptions",
        "forced swap preemptions",
        "forced preemptions asked for in flight",
        needs=(*_RECORDS, Flag.FORCE_PREEMPT),
    ),
    _row(
        "sched.budget",
        "A step, and each share of it, is what budget and limits give.",
        "chunks that end before the prompt",
    ),
    _row(
        "sched.counters",
        "Levels and totals of the books are those that the events make.",
        needs=_BOOKS,
    ),
    _row(
        "sched.contiguous",
        "A step computes [c, c + n): no gap, no overlap, inside max_model_len.",
        "chunks that end before the prompt",
    ),
    _row(
        "sched.samples-at-end",
        "A token is sampled exactly when a step reaches the last known token.",
    ),
    _row(
        "life.stops",
        "A sequence ends exactly at its first stop condition, with its reason.",
        "ends by stop",
        "ends by length",
    ),
    _row(
        "sched.progress",
        "A plan schedules something, and everything submitted ends within bounded steps.",
    ),
    _row(
        "life.no-work-after-end",
        "An aborted or finished sequence is never scheduled again.",
        "aborts in decode",
    ),
    _row(
        "sched.one-in-flight",
        "One step at most is in flight when a plan is made; results in order.",
        "plans with a step in flight",
    ),
    _row(
        "sched.once-per-step",
        "A sequence stands in a plan once, and plans keep the running order.",
    ),
    _row(
        "sched.admission-feasible",
        "A request is refused, at once, exactly if it can never run.",
        "requests refused",
    ),
    _row(
        "sched.order",
        "Admissions follow the order of the queues; whom they overtake waits for a prefix.",
    ),
    _row(
        "sched.waits-for-prefix",
        "Nobody is admitted while the next block that it could hit is being computed.",
        "requests passed over",
    ),
)
