"""The real small model: logits, weights and tokenizer, against Hugging Face."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pagetwin.engine.config import ModelConfig
from pagetwin.engine.models.loader import LoadedModel, load_model
from pagetwin.engine.models.store import resolve_model

pytestmark = [pytest.mark.model, pytest.mark.slow]

NAME = "SmolLM2-135M-Instruct"
TEXTS = [
    "The capital of France is Paris, and the capital of Italy is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "1, 2, 3, 4,  5,   60, 700 and 1/2 or ½",
    "Naïve café, 日本語, 🙂 and \t tabs",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_model(NAME)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ModelConfig(model=NAME, dtype="float32"), torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def hf(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def test_logits_and_argmax_are_those_of_hugging_face(
    loaded: LoadedModel, tokenizer: Any, hf: Any, paged_logits: Callable[..., list[Tensor]]
) -> None:
    chat = [{"role": "user", "content": "Write a haiku about paged attention."}]
    prompts = [tokenizer.encode(text) for text in TEXTS]
    prompts.append(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])
    long = tokenizer.encode(Path(__file__).read_text(encoding="utf-8"))[:1000]
    prompts.append(long)
    assert len(long) == 1000
    ours = torch.cat(paged_logits(loaded, prompts, 512))
    with torch.inference_mode():
        theirs = torch.cat([hf(torch.tensor([prompt])).logits[0] for prompt in prompts])
    # 30 layers of sums of up to 1536: measured 2.4e-6 of the largest logit, which is 44.
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_the_spec_is_the_published_one(loaded: LoadedModel) -> None:
    spec = loaded.spec
    assert (spec.num_layers, spec.num_attention_heads, spec.num_kv_heads) == (30, 9, 3)
    assert (spec.head_size, spec.vocab_size, spec.max_model_len) == (64, 49152, 8192)
    assert spec.eos_token_ids == (2,)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_tokenizer(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: Any) -> None:
    """SmolLM2 splits digits off before anything else, so the blanks before them merge."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("x =  120"))
    assert tokens == ["x", "Ġ=", "ĠĠ", "1", "2", "0"]


def test_the_chat_template_is_chatml_with_the_default_system_prompt(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(text)
    assert ids[0] == 1
    assert ids.count(2) == 2
