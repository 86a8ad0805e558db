"""A tokenizer of a few pieces, for engines whose model has none; awkward where real ones are."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from pagetwin.engine.tokenizer import ChatMessage

_TWO_BYTES = "é".encode()


class TinyTokenizer:
    """Token i is the bytes `pieces[i]`; those from `first_special` on are special.

    `spaced`: the text's first space is dropped, so that a token's share of the text depends on
    what is before it. `fallback`: pieces of one byte that is no character are text together with
    their like beside them, if they are characters then, and one U+FFFD each if not.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        *,
        first_special: int | None = None,
        eos_token_ids: tuple[int, ...] = (),
        spaced: bool = False,
        fallback: bool = False,
    ) -> None:
        self.pieces = tuple(pieces)
        self.vocab_size = len(self.pieces)
        self.eos_token_ids = eos_token_ids
        self._first_special = self.vocab_size if first_special is None else first_special
        self._spaced = spaced
        self._fallback = fallback

    @classmethod
    def of_size(cls, vocab_size: int) -> "TinyTokenizer":
        """Letters, a space, the two halves of a character, and then pieces of several letters."""
        pieces = [bytes((letter,)) for letter in b"abcdefghijklmnopqrstuvwxyz "]
        pieces += [_TWO_BYTES[:1], _TWO_BYTES[1:]]
        pieces += [_letters(number) for number in range(26, vocab_size)]
        return cls(pieces[:vocab_size])

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The longest piece at each place. Raises ValueError where none fits."""
        data, token_ids = text.encode(), list[int]()
        while data:
            fitting = [i for i, one in enumerate(self.pieces) if one and data.startswith(one)]
            if not fitting:
                raise ValueError(f"no piece begins as {data[:8]!r} does")
            token_ids.append(max(fitting, key=lambda i: len(self.pieces[i])))
            data = data[len(self.pieces[token_ids[-1]]) :]
        return token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        shown = (t for t in token_ids if not (skip_special_tokens and self.is_special(t)))
        if self._fallback:
            text = "".join(self._text_of(run) for _, run in groupby(shown, self.may_change))
        else:
            text = b"".join(self.pieces[token] for token in shown).decode(errors="replace")
        return text.removeprefix(" ") if self._spaced else text

    def _text_of(self, run: Iterable[int]) -> str:
        """Of tokens that are all fallback bytes, or none of them."""
        pieces = [self.pieces[token] for token in run]
        try:
            return b"".join(pieces).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(pieces)

    def is_special(self, token_id: int) -> bool:
        return token_id >= self._first_special

    def token_bytes(self, token_id: int) -> bytes | None:
        return None if self._spaced or self._fallback else self.pieces[token_id]

    def may_change(self, token_id: int) -> bool:
        piece = self.pieces[token_id]
        return self._fallback and len(piece) == 1 and piece[0] >= 0x80

    def apply_chat_template(self, messages: Sequence[ChatMessage], **options: object) -> str:
        return "".join(f"{message['content']}" for message in messages)


def _letters(number: int) -> bytes:
    """The number in base 26, in letters."""
    digits = b""
    while number or not digits:
        number, digit = divmod(number, 26)
        digits = bytes((97 + digit,)) + digits
    return digits
