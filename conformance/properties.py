"""The catalogue: which properties a history can show, and what each needs to be judged."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Need = Literal["plans", "results", "counters", "block_tables"]


class Property(msgspec.Struct, frozen=True):
    """A statement that holds in every history of a right engine."""

    id: str
    statement: str
    needs: tuple[Need, ...] = ("plans", "results")


class Violation(msgspec.Struct, frozen=True):
    """A property that a history breaks: where, and what shows it."""

    property_id: str
    step: int
    """The step planned or closed where it shows; -1 before the first."""
    message: str
    witness: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        facts = ", ".join(f"{name}={value}" for name, value in self.witness)
        return f"{self.property_id} step {self.step}: {self.message} ({facts})"


def violation(property_id: str, step: int, message: str, **witness: object) -> Violation:
    """A violation whose witness is the given facts; the id must be in the catalogue."""
    assert property_id in CATALOGUE, property_id
    facts = tuple((name, str(value)) for name, value in witness.items())
    return Violation(property_id, step, message, facts)


def _catalogue(properties: Iterable[Property]) -> dict[str, Property]:
    return {entry.id: entry for entry in properties}


CATALOGUE: dict[str, Property] = _catalogue(
    [
        Property("HI1", "A history can be followed: it names only what it has introduced."),
        Property(
            "BP1",
            "After every event the free blocks, host ones too, are those that nothing holds.",
            ("plans", "results", "counters"),
        ),
        Property("BP4", "A block that a step takes was free."),
        Property("BP7", "The null block is never issued, copied or written; ids stay in range."),
        Property(
            "BP8",
            "With no live request and nothing in flight, every block is free.",
            ("plans", "results", "counters"),
        ),
        Property("BP12", "A block that a step writes has one holder."),
        Property("BP13", "A scheduled sequence holds ceil((c + n + K) / B) table entries."),
        Property(
            "BP14",
            "Recorded and introduced block tables are those that the plans' changes make.",
            ("plans", "results", "block_tables"),
        ),
        Property(
            "CW1",
            "A block with other holders is copied before it is written, and only then: at every "
            "position a step reads what its own sequence computed there.",
        ),
        Property(
            "CW3",
            "A step's copies are those of its replaced entries and partial hits, each destination "
            "once and none a source.",
        ),
        Property("CW4", "A group forks once, into all of its samples, when its prompt is done."),
        Property("PC1", "A hit's blocks hold the request's own tokens, salt, adapter and media."),
        Property("PC3", "A hit is the longest cached run of full blocks that is allowed."),
        Property("PC4", "A partial hit is the longest one that executed, full blocks give."),
        Property(
            "PC5",
            "Cached blocks, hits and evictions are those that the steps made.",
            ("plans", "results", "counters"),
        ),
        Property("PC7", "An admission computes at least one token."),
        Property("PC8", "A reset fails exactly while blocks are held; after it nothing hits."),
        Property("PR2", "A preempted sequence ran, is not in that step, and its row is dropped."),
        Property("PR3", "A sequence returns with all of its tokens, and computes what it lost."),
        Property("PR5", "Swapping saves and restores each block: source, destination, content."),
        Property("PR7", "The victim is a resting beam that cannot go on, else the last in order."),
        Property("PR8", "Nothing is preempted while a step is in flight, nor beside admissions."),
        Property("SC1", "A step, and each share of it, is what budget and limits give."),
        Property(
            "SC2",
            "Levels and totals of the books are those that the events make.",
            ("plans", "results", "counters"),
        ),
        Property("SC3", "A step computes [c, c + n): no gap, no overlap, inside max_model_len."),
        Property("SC4", "A token is sampled exactly when a step reaches the last known token."),
        Property("SC5", "A sequence ends exactly at its first stop condition, with its reason."),
        Property("SC6", "A plan schedules something."),
        Property("SC7", "An aborted or finished sequence is never scheduled again."),
        Property("SC8", "One step at most is in flight when a plan is made; results in order."),
        Property("SC9", "A sequence stands in a plan once, and plans keep the running order."),
        Property("SC11", "Admissions follow the order of the queues."),
    ]
)
