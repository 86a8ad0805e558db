"""A mutant: one known bug, what should notice it, and the edits that plant it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pagetwin.conformance.mutants.edits import Edit, applied


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A bug that an engine really had, or the like of one, as a switch."""

    id: str
    """`family.name`."""
    bug: str
    """The number of the bug report that it re-implants, or "" for a bug of no known report."""
    statement: str
    """What is wrong, in one sentence."""
    expects: str
    """Id of the property that should notice."""
    trigger: str
    """The least that must happen for it to show."""
    edits: tuple[Edit, ...]
    also_tried: tuple[str, ...] = ()
    """Trials beyond those that exercise the modules it changes."""
    equivalent: str = ""
    """Why no property can notice: the argument that the mutant does what the original does."""

    @property
    def family(self) -> str:
        return self.id.partition(".")[0]

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that it changes, each once."""
        return tuple(dict.fromkeys(edit.target.partition(":")[0] for edit in self.edits))

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Runs its block with the bug in place. Raises EditError if the code has moved on."""
        with applied(self.edits):
            yield
