"""The catalogue: which properties there are, and what a violation of one looks like."""

from collections.abc import Iterable

import msgspec

from pagetwin.conformance.catalogue import (
    clients,
    components,
    faults,
    histories,
    memory,
    twin,
    values,
)
from pagetwin.conformance.catalogue.property import Property

__all__ = ["CATALOGUE", "Property", "Violation", "violation"]


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


def _catalogue(areas: Iterable[Iterable[Property]]) -> dict[str, Property]:
    rows = [row for area in areas for row in area]
    assert len({row.id for row in rows}) == len(rows), "two properties have the same id"
    return {row.id: row for row in rows}


CATALOGUE: dict[str, Property] = _catalogue(
    [
        histories.PROPERTIES,
        twin.PROPERTIES,
        clients.PROPERTIES,
        memory.PROPERTIES,
        values.PROPERTIES,
        components.PROPERTIES,
        faults.PROPERTIES,
    ]
)
"""By id. A new area is a line here."""
