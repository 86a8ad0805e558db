"""Streamed text is the text: joined deltas equal a decode of all tokens, cut at the stop string."""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pagetwin.engine.detokenizer import (
    ByteDetokenizer,
    Detokenizer,
    StopStrings,
    TextStream,
    WindowDetokenizer,
    new_detokenizer,
)
from pagetwin.engine.models.store import resolve_model
from pagetwin.engine.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer

SAMPLES = [
    "hello world, the theory of the thing",
    "  two   three    spaces \n\n\ttabs",
    "héllo wörld, naïve façade ﷺ",
    "世界你好、今天天气很好。こんにちは 안녕하세요",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200d",
    "\ufffd real replacement characters \ufffd\ufffd",
]


def wrapped(backend: RustTokenizer, **special_tokens: str) -> HuggingFaceTokenizer:
    fast: Any = PreTrainedTokenizerFast
    return HuggingFaceTokenizer(fast(tokenizer_object=backend, **special_tokens))


@lru_cache
def byte_level() -> HuggingFaceTokenizer:
    """Byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM2 have."""
    backend = RustTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>", "<|special 世|>"],
        show_progress=False,
    )
    backend.train_from_iterator(SAMPLES, trainer)
    backend.add_tokens(["added 世 token"])
    return wrapped(backend, eos_token="<eos>")


@lru_cache
def byte_fallback() -> HuggingFaceTokenizer:
    """SentencePiece-like BPE with byte fallback, as Llama 2 and Mistral have."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["▁", "▁▁", "▁▁▁▁", "a", "▁a", "b", "▁the", "世", "é", "\ufffd"]
    backend = RustTokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@lru_cache
def raw_bytes() -> ByteTokenizer:
    return ByteTokenizer(vocab_size=260)


TOKENIZERS = [byte_level, byte_fallback, raw_bytes]
# Bytes of 世 and 😀, cut and put together wrongly: most likely to be mended too early.
TRICKY_BYTES = [0xE4, 0xB8, 0x96, 0xF0, 0x9F, 0x98, 0x80, 0xFF, 0xC3]


def token_lists(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Token ids at random, with many cut characters; shrinks to few tokens and low ids.

    Some ids are beyond the vocabulary, as where a model's logits are padded.
    """
    anything = st.integers(0, tokenizer.vocab_size + 3)
    if tokenizer is byte_fallback():
        tricky = st.sampled_from(
            [3 + byte for byte in TRICKY_BYTES] + [259, 260, 263, tokenizer.vocab_size]
        )
    elif tokenizer is byte_level():
        tricky = st.sampled_from(
            [
                next(t for t in range(400) if tokenizer.token_bytes(t) == bytes([b]))
                for b in TRICKY_BYTES
            ]
        )
    else:
        tricky = st.sampled_from(TRICKY_BYTES)
    return st.lists(anything | tricky, max_size=30)


def streamed(detokenizer: Detokenizer, token_ids: Sequence[int]) -> str:
    return "".join([detokenizer.append(t) for t in token_ids]) + detokenizer.flush()


@pytest.mark.parametrize("make", TOKENIZERS)
@given(data=st.data(), skip=st.booleans())
def test_joined_deltas_are_the_decode_of_all_tokens(
    make: Callable[[], Tokenizer], data: st.DataObject, skip: bool
) -> None:
    tokenizer = make()
    token_ids = data.draw(token_lists(tokenizer))
    expected = tokenizer.decode(token_ids, skip_special_tokens=skip)
    fast = new_detokenizer(tokenizer, skip_special_tokens=skip)
    slow = WindowDetokenizer(tokenizer, skip_special_tokens=skip)
    assert streamed(fast, token_ids) == expected
    assert streamed(slow, token_ids) == expected


def check_texts_stream_whole(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    num_held = 0
    for _ in range(200):
        text = "".join(rng.choice(rng.choice(SAMPLES)) for _ in range(40))
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        detokenizer = new_detokenizer(tokenizer)
        deltas = [detokenizer.append(t) for t in token_ids]
        num_held += deltas.count("")
        assert "".join(deltas) + detokenizer.flush() == tokenizer.decode(token_ids)
        for delta in deltas:
            assert "\ufffd" not in delta or "\ufffd" in text
    assert num_held > 0, "no character was cut by a token's end"


@pytest.mark.parametrize("make", [byte_level, raw_bytes])
def test_no_cut_character_is_ever_shown(make: Callable[[], Tokenizer]) -> None:
    check_texts_stream_whole(make())


@pytest.mark.model
def test_smollm2_streams_texts_and_any_tokens_exactly() -> None:
    tokenizer = HuggingFaceTokenizer.from_pretrained(resolve_model("SmolLM2-135M-Instruct"))
    check_texts_stream_whole(tokenizer)
    assert isinstance(new_detokenizer(tokenizer), ByteDetokenizer)
    rng = random.Random(1)
    num_invalid = 0
    for i in range(1000):
        token_ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(40))]
        skip = bool(i % 2)
        expected = tokenizer.decode(token_ids, skip_special_tokens=skip)
        num_invalid += "\ufffd" in expected
        for kind in (ByteDetokenizer, WindowDetokenizer):
            detokenizer = kind(tokenizer, skip_special_tokens=skip)
            assert streamed(detokenizer, token_ids) == expected
    assert num_invalid > 50


def test_byte_level_tokenizers_take_the_cheap_way() -> None:
    assert isinstance(new_detokenizer(byte_level()), ByteDetokenizer)
    assert isinstance(new_detokenizer(byte_fallback()), WindowDetokenizer)


def stop_definition(
    pieces: Sequence[str], stops: Sequence[str], min_tokens: int
) -> tuple[int, str, str] | None:
    """The meaning of stop strings, one prefix of the text after another.

    (number of tokens, text before the stop string, stop string)
    """
    floor = len("".join(pieces[:min_tokens]))
    for count in range(min_tokens + 1, len(pieces) + 1):
        text = "".join(pieces[:count])
        for end in range(floor + 1, len(text) + 1):
            ending = [stop for stop in stops if text[:end].endswith(stop)]
            if ending:
                stop = max(ending, key=len)
                return count, text[: end - len(stop)], stop
    return None


PIECES = st.lists(st.text("abc", max_size=3), max_size=12)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3, unique=True)


class Pieces:
    """A detokenizer whose token i is the i-th piece of a text."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces

    def append(self, token_id: int) -> str:
        return self._pieces[token_id]

    def flush(self) -> str:
        return ""


@given(PIECES, STOPS, st.integers(0, 4), st.booleans())
def test_text_is_cut_where_the_first_stop_string_is_complete(
    pieces: list[str], stops: list[str], min_tokens: int, include: bool
) -> None:
    expected = stop_definition(pieces, stops, min_tokens)
    stream = TextStream(Pieces(pieces), stops, include_stop=include)
    shown = ""
    found = None
    for token in range(len(pieces)):
        found = stream.append(token, check_stops=token >= min_tokens)
        visible = stream.text[: stream.num_visible]
        assert visible.startswith(shown), "text was taken back"
        shown = visible
        if found is not None:
            break
    stream.finish()
    assert stream.text.startswith(shown)
    assert stream.num_visible == len(stream.text)
    if expected is None:
        assert found is None
        assert stream.text == "".join(pieces)
    else:
        count, before, stop = expected
        assert (token + 1, found) == (count, stop)
        assert stream.text == before + (stop if include else "")


@given(PIECES, STOPS)
def test_what_is_held_back_is_the_longest_beginning_of_a_stop_string(
    pieces: list[str], stops: list[str]
) -> None:
    text = "".join(pieces)
    lengths = (
        length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length])
    )
    assert StopStrings(stops).num_held_back(text) == max(lengths, default=0)


def test_of_two_stop_strings_that_end_together_the_longer_wins() -> None:
    match = StopStrings(["bc", "abc"]).find("xabc")
    assert match is not None
    assert (match.begin, match.stop) == (1, "abc")


def test_held_text_is_shown_once_when_it_turns_out_harmless() -> None:
    stream = TextStream(Pieces(["Al", "ice", "!"]), ["Alibi"])
    visible = []
    for token in range(3):
        assert stream.append(token) is None
        visible.append(stream.text[: stream.num_visible])
    assert visible == ["", "Alice", "Alice!"]
