"""One protocol over byte ids, byte-level BPE and the rest."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pagetwin.engine.errors import ModelError, RequestError
from pagetwin.engine.tokenizer import ByteTokenizer, HuggingFaceTokenizer, load_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def one_token_per_byte() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = RustTokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=backend, eos_token="<eos>")


@given(st.text())
def test_bytes_come_back_as_the_text_they_were(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.integers(0, 300)), st.booleans())
def test_token_bytes_put_together_are_the_decode(token_ids: list[int], skip: bool) -> None:
    for tokenizer in (ByteTokenizer(301), HuggingFaceTokenizer(one_token_per_byte())):
        shown = [t for t in token_ids if not (skip and tokenizer.is_special(t))]
        pieces = [tokenizer.token_bytes(t) or b"" for t in shown]
        text = b"".join(pieces).decode(errors="replace")
        assert tokenizer.decode(token_ids, skip_special_tokens=skip) == text


def test_every_byte_has_its_token() -> None:
    tokenizer = HuggingFaceTokenizer(one_token_per_byte())
    found = {tokenizer.token_bytes(token_id) for token_id in range(256)}
    assert found == {bytes([byte]) for byte in range(256)}
    assert tokenizer.token_bytes(256) == b"<eos>"
    assert tokenizer.vocab_size == 257
    assert tokenizer.eos_token_ids == (256,)


def test_a_saved_tokenizer_is_read_from_its_folder(tmp_path: Path) -> None:
    saved = one_token_per_byte()
    saved.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    text = "héllo 世界 😀"
    assert tokenizer.encode(text) == saved.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_folder_without_a_tokenizer_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"skip_tokenizer"):
        load_tokenizer(tmp_path)


def test_the_byte_tokenizer_takes_over_the_models_vocabulary() -> None:
    assert load_tokenizer("bytes", vocab_size=512).vocab_size == 512
    with pytest.raises(ModelError, match="at least 256 tokens, the model has 100"):
        load_tokenizer("bytes", vocab_size=100)


def test_a_chat_becomes_the_templates_text() -> None:
    chat = [{"role": "user", "content": "hi"}]
    plain = one_token_per_byte()
    with pytest.raises(RequestError, match="chat"):
        HuggingFaceTokenizer(plain).apply_chat_template(chat)
    plain.chat_template = TEMPLATE
    tokenizer = HuggingFaceTokenizer(plain)
    assert tokenizer.apply_chat_template(chat) == "[user]hi[assistant]"
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=False) == "[user]hi"
    assert ByteTokenizer().apply_chat_template(chat) == "user: hi\nassistant:"
