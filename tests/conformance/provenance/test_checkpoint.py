"""The checkpoint says the token of the slot that it reads, in every precision, by a wide margin."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pagetwin.conformance.provenance.checkpoint import token_codes, write_checkpoint
from pagetwin.conformance.provenance.recipe import (
    END_TOKEN_ID,
    NUM_SPECIAL_TOKENS,
    ProvenanceRecipe,
    read_recipe,
)
from pagetwin.conformance.provenance.variants import VARIANTS
from pagetwin.engine.errors import ConfigError

if TYPE_CHECKING:
    from tests.conformance.provenance.conftest import CheckpointOf

LENGTH = 300
LEAST_MARGIN = 10.0


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_transformers_reads_the_slot_at_the_offset(
    checkpoint_of: "CheckpointOf", variant: str, dtype: str
) -> None:
    recipe = VARIANTS[variant]
    factory: Any = AutoModelForCausalLM
    model = factory.from_pretrained(
        checkpoint_of(variant), dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    vocabulary = np.arange(NUM_SPECIAL_TOKENS, recipe.vocab_size)
    tokens = torch.from_numpy(np.random.default_rng(0).permutation(vocabulary)[:LENGTH])
    with torch.no_grad():
        logits = model(tokens[None]).logits[0].double()

    # The first reading positions of two layers look at slots that had nothing to read.
    right = tokens[: -recipe.offset]
    read = logits[recipe.offset :]
    best = read.topk(2)
    assert best.indices[:, 0].tolist() == right.tolist()
    assert float((best.values[:, 0] - best.values[:, 1]).min()) > LEAST_MARGIN


def test_codes_differ_in_eight_signs_or_more() -> None:
    codes = token_codes(ProvenanceRecipe(vocab_size=512))
    agreement = codes @ codes.T
    np.fill_diagonal(agreement, -np.inf)
    assert agreement.max() == codes.shape[1] - 2 * 8


def test_equal_recipes_give_equal_bytes_and_other_seeds_other_ones(tmp_path: Path) -> None:
    recipe = ProvenanceRecipe(vocab_size=64)
    other = ProvenanceRecipe(vocab_size=64, seed=1)
    folders = [
        write_checkpoint(one, tmp_path / str(i)) for i, one in enumerate([recipe, recipe, other])
    ]
    weights = [
        hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        for folder in folders
    ]
    assert weights[0] == weights[1] != weights[2]
    assert read_recipe(folders[2]) == other


def test_the_tokenizer_writes_and_reads_token_ids(tmp_path: Path) -> None:
    folder = write_checkpoint(ProvenanceRecipe(vocab_size=64), tmp_path / "checkpoint")
    words = [f"t{token}" for token in range(NUM_SPECIAL_TOKENS, 64)]
    text, token_ids = " ".join(words), list(range(NUM_SPECIAL_TOKENS, 64))
    # As a server reads it, special tokens and all: they must not cut words that begin like them.
    served = AutoTokenizer.from_pretrained(str(folder))
    assert served.encode(text, add_special_tokens=False) == token_ids
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert plain.encode(f"{text} nonsense").ids == [*token_ids, 3]
    assert plain.decode(token_ids) == served.decode(token_ids) == text
    ends = served.pad_token_id, served.bos_token_id, served.eos_token_id, served.unk_token_id
    assert ends == (0, 1, END_TOKEN_ID, 3)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_layers": 3}, "num_layers=3 is not 1 or 2"),
        ({"offset": 0}, "offset=0 is outside 1..2047"),
        ({"offset": 1, "num_layers": 2}, "offset=1 is outside 2..2047"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
        ({"sliding_window": 5}, "sliding_window=5 hides the slot"),
        ({"vocab_size": 100_000}, "vocab_size=100000 is outside 5..65536"),
    ],
)
def test_what_no_checkpoint_can_be_made_from_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ProvenanceRecipe(**fields)


def test_other_checkpoints_have_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert read_recipe(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json: not a model's config"):
        read_recipe(tmp_path)
