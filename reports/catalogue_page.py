"""The catalogue as Markdown: docs/conformance.md holds it between two marks, and a test keeps it
in step."""

import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from pagetwin.conformance.catalogue.property import Property
from pagetwin.conformance.properties import CATALOGUE
from pagetwin.conformance.suite.profiles import PROFILES
from pagetwin.reports.tables import Table

BEGIN = "<!-- the catalogue: written by pagetwin.reports.catalogue_page, do not edit -->"
END = "<!-- end of the catalogue -->"


def catalogue_markdown() -> str:
    """Profiles, then one table for each area, in the catalogue's order."""
    rows = [
        (f"`{profile.name}`", profile.what, str(len(profile.properties)))
        for profile in PROFILES.values()
    ]
    parts = [Table(("profile", "what", "properties"), rows, num_left=2).markdown()]
    ordered = sorted(CATALOGUE.values(), key=lambda row: row.id.partition(".")[0])
    for area, properties in groupby(ordered, key=lambda row: row.id.partition(".")[0]):
        parts.append(f"### {area}\n\n{_area_table(properties).markdown()}")
    return "\n\n".join(parts)


def with_catalogue(page: str) -> str:
    """The page with what is between the marks written anew; ValueError if they are not there."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no place for the catalogue: its two marks are missing")
    return f"{head}{BEGIN}\n\n{catalogue_markdown()}\n\n{END}{tail}"


def _area_table(properties: Iterable[Property]) -> Table:
    rows = [
        (
            f"`{row.id}`",
            row.statement.replace("|", "\\|"),
            row.level.label,
            ", ".join(f"`{flag}`" for flag in row.needs),
            "; ".join(row.goals),
        )
        for row in properties
    ]
    columns = ("property", "what it says", "level", "needs", "must have happened")
    return Table(columns, rows, num_left=len(columns))


def main() -> None:
    """`python -m pagetwin.reports.catalogue_page PAGE` writes the page's catalogue anew."""
    path = Path(sys.argv[1])
    path.write_text(with_catalogue(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
