"""Token ids that say where they belong: which owner's prompt, and which position in it."""

from typing import NamedTuple

import msgspec

from pagetwin.conformance.provenance.recipe import NUM_SPECIAL_TOKENS


class Slot(NamedTuple):
    """A place in a prompt. An owner is a request, or a prefix that several requests share."""

    owner: int
    position: int

    def __str__(self) -> str:
        return f"({self.owner}, {self.position})"


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """A numbering of slots by token ids: each owner has the next `span` ids, by position."""

    vocab_size: int
    span: int
    """Longest prompt, in tokens."""

    @property
    def num_owners(self) -> int:
        """How many owners the vocabulary has room for."""
        return (self.vocab_size - NUM_SPECIAL_TOKENS) // self.span

    def token(self, slot: Slot) -> int:
        """The slot's token id. Raises ValueError for a slot that the vocabulary has no room for."""
        if not (0 <= slot.owner < self.num_owners and 0 <= slot.position < self.span):
            raise ValueError(
                f"slot {slot} is outside the {self.num_owners} owners and {self.span} positions "
                f"that a vocabulary of {self.vocab_size} tokens has labels for"
            )
        return NUM_SPECIAL_TOKENS + slot.owner * self.span + slot.position

    def slot(self, token_id: int) -> Slot | None:
        """What a token id stands for; None for one that stands in no prompt."""
        number = token_id - NUM_SPECIAL_TOKENS
        if not 0 <= number < self.num_owners * self.span:
            return None
        return Slot(*divmod(number, self.span))

    def prompt(self, *parts: tuple[int, int, int]) -> tuple[int, ...]:
        """A prompt of consecutive parts (owner, from position, to position)."""
        return tuple(
            self.token(Slot(owner, position))
            for owner, start, end in parts
            for position in range(start, end)
        )
