"""One table, two ways to write it down: aligned for a terminal, Markdown for a page."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells are texts already. Columns of numbers stand to the right, all but the first few."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_left: int = 1
    """Columns, from the first, that are words."""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), f"{len(self.columns)} columns, but {row}"

    def text(self) -> str:
        widths = [max(map(len, cells)) for cells in zip(self.columns, *self.rows, strict=True)]
        return "\n".join(self._line(row, widths, "  ") for row in (self.columns, *self.rows))

    def markdown(self) -> str:
        rule = ["---" if i < self.num_left else "---:" for i in range(len(self.columns))]
        return "\n".join("| " + " | ".join(row) + " |" for row in (self.columns, rule, *self.rows))

    def _line(self, cells: Sequence[str], widths: Sequence[int], gap: str) -> str:
        placed = [
            cell.ljust(width) if i < self.num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return gap.join(placed).rstrip()


def number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, no exponent, thousands apart; nothing for None."""
    if value is None:
        return ""
    decimals = digits - len(str(int(abs(round(value, digits))))) if abs(value) >= 1 else digits
    return f"{value:,.{max(0, decimals)}f}"
