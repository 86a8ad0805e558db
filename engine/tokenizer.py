"""Decides how text becomes token ids and token ids become text: one protocol, two tokenizers."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from pagetwin.engine.errors import ModelError, RequestError

ChatMessage = Mapping[str, Any]
BYTES = "bytes"
"""The value of `ModelConfig.tokenizer` that asks for the byte tokenizer."""


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer.

    `decode` is the meaning of text everywhere: a stream of deltas, joined, equals `decode` of
    all the tokens. It never tidies spaces up, since that would change text already sent.
    """

    @property
    def vocab_size(self) -> int:
        """Every token id is below it."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def is_special(self, token_id: int) -> bool:
        """Whether `decode` leaves the token out when it skips special tokens."""
        ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """The token's share of the text, if text is the tokens' bytes put together and read as
        UTF-8 (invalid bytes replaced); None if `decode` does anything else."""
        ...

    def may_change(self, token_id: int) -> bool:
        """Whether the text of a last token like this one still depends on what follows."""
        ...

    def apply_chat_template(self, messages: Sequence[ChatMessage], **options: Any) -> str:
        """The prompt text of a chat; encode it without special tokens."""
        ...


class ByteTokenizer:
    """Token id i below 256 is the byte i; the ids from 256 on are special tokens, 256 is EOS."""

    eos_token_ids = (256,)

    def __init__(self, vocab_size: int = 257) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        shown = (t for t in token_ids if not (skip_special_tokens and self.is_special(t)))
        return b"".join(map(self.token_bytes, shown)).decode(errors="replace")

    def is_special(self, token_id: int) -> bool:
        return token_id >= 256

    def token_bytes(self, token_id: int) -> bytes:
        return b"<%d>" % token_id if token_id >= 256 else bytes((token_id,))

    def may_change(self, token_id: int) -> bool:
        return False

    def apply_chat_template(self, messages: Sequence[ChatMessage], **options: Any) -> str:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return "".join(lines) + "assistant:"


class HuggingFaceTokenizer:
    """A tokenizer of the transformers library, fast or slow."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # The Rust tokenizer under a fast one: its decode skips much Python.
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        added = tokenizer.added_tokens_decoder.items()
        self._special_ids = frozenset(tokenizer.all_special_ids) | {
            token_id for token_id, token in added if token.special
        }
        ids = tokenizer.get_vocab().values()
        self._vocab_size = max(ids, default=-1) + 1
        self._byte_fallback_ids = _byte_fallback_ids(tokenizer)
        self._byte_of_char = _byte_of_char() if _is_byte_level(self._backend) else None
        self._bytes_cache: dict[int, bytes] = {}

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "HuggingFaceTokenizer":
        """Reads the tokenizer files of a folder, or of a cached hub model.

        Raises ModelError if there are none, or if they cannot be read.
        """
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(str(name)))
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"no tokenizer can be read from {name}: {error}; give the folder of one with the "
                f"knob tokenizer, use tokenizer={BYTES!r}, or set skip_tokenizer to work with "
                "token ids alone"
            ) from error

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        eos = self._tokenizer.eos_token_id
        return () if eos is None else (int(eos),)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if self._backend is not None:
            text = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        else:
            text = self._tokenizer.decode(
                list(token_ids),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        return str(text)

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def token_bytes(self, token_id: int) -> bytes | None:
        if self._byte_of_char is None:
            return None
        found = self._bytes_cache.get(token_id)
        if found is None:
            found = self._bytes_cache[token_id] = self._bytes_of(token_id, self._byte_of_char)
        return found

    def _bytes_of(self, token_id: int, byte_of_char: Mapping[str, int]) -> bytes:
        # As the library's ByteLevel decoder does it: a token with any other character (an added
        # token) stands for its own text, an id beyond the vocabulary for nothing.
        assert self._backend is not None
        token = self._backend.id_to_token(token_id) or ""
        try:
            return bytes(byte_of_char[char] for char in token)
        except KeyError:
            return str(token).encode()

    def may_change(self, token_id: int) -> bool:
        # A run of byte-fallback tokens is one text if it is valid UTF-8 as a whole; otherwise
        # each of its bytes, the valid characters before included, becomes U+FFFD.
        return token_id in self._byte_fallback_ids

    def apply_chat_template(self, messages: Sequence[ChatMessage], **options: Any) -> str:
        """Raises RequestError if there is no template, or if it refuses the messages."""
        from jinja2 import TemplateError

        options.setdefault("add_generation_prompt", True)
        chat = [dict(message) for message in messages]
        try:
            return str(self._tokenizer.apply_chat_template(chat, tokenize=False, **options))
        except (ValueError, TypeError, TemplateError) as error:
            raise RequestError(
                f"the chat cannot be turned into a prompt: {error}; correct the messages, or "
                "give a prompt"
            ) from error


def load_tokenizer(name: str | Path, *, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a folder, or the byte tokenizer if `name` is "bytes".

    `vocab_size` is the model's; the byte tokenizer takes it over. Raises ModelError.
    """
    if str(name) != BYTES:
        return HuggingFaceTokenizer.from_pretrained(name)
    if vocab_size is not None and vocab_size < 256:
        raise ModelError(
            f"tokenizer={BYTES!r} needs a vocabulary of at least 256 tokens, the model has "
            f"{vocab_size}; set skip_tokenizer to work with token ids alone"
        )
    return ByteTokenizer() if vocab_size is None else ByteTokenizer(vocab_size)


def _is_byte_level(backend: Any) -> bool:
    return backend is not None and type(backend.decoder).__name__ == "ByteLevel"


def _byte_fallback_ids(tokenizer: Any) -> frozenset[int]:
    vocab = tokenizer.get_vocab()
    names = (f"<0x{byte:02X}>" for byte in range(256))
    return frozenset(vocab[name] for name in names if name in vocab)


@lru_cache(maxsize=1)
def _byte_of_char() -> Mapping[str, int]:
    """The printable character that byte-level BPE writes for each byte, reversed.

    Printable Latin-1 bytes are themselves, the others are the characters from U+0100 on, in
    byte order (GPT-2, Radford et al. 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return table
