"""Decides which text of a growing sequence may be shown: whole characters, no part of a stop."""

import codecs
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pagetwin.engine.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """Turns one sequence's tokens into text as they come.

    All the texts that `append` and the last `flush` return, joined, are `tokenizer.decode` of
    all the tokens; none of them is ever taken back.
    """

    def append(self, token_id: int) -> str:
        """The text that this token makes final; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """The text still held back. Called once, after the last token."""
        ...


class ByteDetokenizer:
    """For tokenizers whose text is the tokens' bytes: an incremental UTF-8 decoder."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def append(self, token_id: int) -> str:
        if self._skip and self._tokenizer.is_special(token_id):
            return ""
        data = self._tokenizer.token_bytes(token_id)
        assert data is not None, "the tokenizer's text is not made of bytes"
        return self._decoder.decode(data)

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any tokenizer: decodes a window of the last tokens with and without the newest.

    What a token adds depends on those before it (a first space is stripped, say), so the window
    starts with tokens whose text is out:

        earlier tokens | shown | held
                       ^ the window

    Tokens are held while the text ends in U+FFFD, in a token that may change, or in one that
    adds nothing (what it stands between may still belong together).
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._num_shown = 0
        self._text = ""
        """Of the whole window."""
        self._shown_text = ""

    def append(self, token_id: int) -> str:
        if self._skip and self._tokenizer.is_special(token_id):
            return ""
        self._window.append(token_id)
        before, self._text = self._text, self._decode(self._window)
        if (
            self._text == before
            or self._text.endswith(REPLACEMENT)
            or self._tokenizer.may_change(token_id)
        ):
            return ""
        new_text = self._text[len(self._shown_text) :]
        self._window = self._window[self._num_shown :]
        self._num_shown = len(self._window)
        self._text = self._shown_text = self._decode(self._window)
        return new_text

    def flush(self) -> str:
        return self._text[len(self._shown_text) :]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)


def new_detokenizer(tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> Detokenizer:
    """The cheapest detokenizer that is exact for the tokenizer."""
    if tokenizer.token_bytes(0) is not None:
        return ByteDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    return WindowDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)


class StopMatch(NamedTuple):
    """A stop string found in a text: characters [begin, end)."""

    end: int
    begin: int
    stop: str


class StopStrings:
    """Strings that end a text, and the search for them in a text that grows."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
        self._last_chars = {beginning[-1] for beginning in self._beginnings}
        self._longest = max(map(len, self._beginnings), default=0)

    def find(self, text: str, *, checked: int = 0) -> StopMatch | None:
        """The stop string that is complete first, among those that end beyond `checked`
        characters.

        Of several that end at the same character the longest counts, so that no part of a stop
        string is left before the cut.
        """
        matches = []
        for stop in self._stops:
            begin = text.find(stop, max(0, checked - len(stop) + 1))
            if begin >= 0:
                matches.append(StopMatch(begin + len(stop), begin, stop))
        return min(matches, default=None)

    def num_held_back(self, text: str) -> int:
        """Length of the longest end of the text that a stop string may begin with."""
        if text[-1:] not in self._last_chars:
            return 0
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


class TextStream:
    """One sample's text, cut at its stop string.

    `text` is all of it; its first `num_visible` characters may be shown: they never change and
    are no part of a stop string.
    """

    def __init__(
        self,
        detokenizer: Detokenizer | None,
        stops: Sequence[str] = (),
        *,
        include_stop: bool = False,
    ) -> None:
        self.text = ""
        self.num_visible = 0
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops) if stops else None
        self._include_stop = include_stop

    def append(self, token_id: int, *, check_stops: bool = True) -> str | None:
        """Adds a token's text; the stop string that it completes, if there is one.

        After a stop string nothing may be appended. With `check_stops` False, what this token
        completes does not count, now or later (docs/policy.md P5.1a).
        """
        if self._detokenizer is None:
            return None
        checked = len(self.text)
        self.text += self._detokenizer.append(token_id)
        if self._stops is None:
            self.num_visible = len(self.text)
            return None
        match = self._stops.find(self.text, checked=checked) if check_stops else None
        if match is not None:
            self.text = self.text[: match.end if self._include_stop else match.begin]
            self.num_visible = len(self.text)
            self._detokenizer = None
            return match.stop
        # A stop string that is to be included may be shown as it comes.
        held = 0 if self._include_stop else self._stops.num_held_back(self.text)
        self.num_visible = len(self.text) - held
        return None

    def finish(self) -> None:
        """Shows all that was held back; does nothing the second time."""
        if self._detokenizer is not None:
            self.text += self._detokenizer.flush()
            self._detokenizer = None
        self.num_visible = len(self.text)
