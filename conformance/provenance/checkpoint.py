"""Writes the provenance checkpoint: a hand-set Llama, or Mistral, in plain Hugging Face format.

How it works. A token's embedding is its code, 64 signs, beside one large constant. Queries and
keys are linear in that constant alone, so before rotary embedding they are equal at all positions;
after it the score of a query at t and a key at s is sum_i a_i cos(w_i (t - s) + phase_i). The
phases are -w_i K, so the score has its one peak at t - s = K. With theta = 2 and a_i ~ w_i^2 every
other distance is at least 30 % lower, whatever the length, and the peak is so high (128) that the
rest get e^-38 of the weight. Values are codes; the head compares what was read with all codes.

A code is four digits of 16 signs, each a row of a Hadamard matrix: two tokens that differ in one
digit differ in 8 signs, so the right logit leads by 16 units of the head. Each query head brings
some of the digits, and each KV head holds the code rotated by another number of digits: a head
that reads with the wrong KV head, at the right place, gives another token, too. The second layer
reads what the first one wrote into the residual stream, not the embedding.

All weights are small integers, powers of two, or amplitudes that only must be large, so float64,
float32, bfloat16 and float16 agree.
"""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from pagetwin.conformance.provenance.recipe import (
    CODE_BITS,
    CONFIG_KEY,
    DIGIT_BITS,
    END_TOKEN_ID,
    NUM_DIGITS,
    NUM_SPECIAL_TOKENS,
    ProvenanceRecipe,
)

HEAD_DIM = CODE_BITS
HIDDEN_SIZE = 256
INTERMEDIATE_SIZE = 64
ROPE_THETA = 2.0
PEAK_SCORE = 128.0
CONSTANT = 16.0
"""The constant's share of the hidden state is large, so that the norms of slots whose residual
stream differs (those that had nothing to read yet) differ by less than the other scores do."""
RMS_NORM_EPS = 1e-6

CONSTANT_INDEX = HIDDEN_SIZE - 1
SECTIONS = tuple(slice(i * CODE_BITS, (i + 1) * CODE_BITS) for i in range(3))
"""Of the hidden state: the token's own code, then what each layer read."""


def write_checkpoint(recipe: ProvenanceRecipe, folder: Path) -> Path:
    """Makes `folder` a checkpoint: config, weights, and a tokenizer of words t4, t5, ...

    Equal recipes give equal bytes. Returns the folder. Raises OSError where it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype: torch.dtype = getattr(torch, recipe.dtype)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in _weights(recipe).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "generation_config.json", {"eos_token_id": END_TOKEN_ID})
    _write_tokenizer(recipe, folder)
    _write_json(folder / "config.json", _config(recipe))
    return folder


def token_codes(recipe: ProvenanceRecipe) -> NDArray[np.float32]:
    """The code of each token, signs: [vocab_size, CODE_BITS]."""
    base = math.ceil(recipe.vocab_size ** (1 / NUM_DIGITS))
    while base**NUM_DIGITS < recipe.vocab_size:
        base += 1
    words = _orthogonal_words()
    number = np.random.default_rng(recipe.seed).permutation(base**NUM_DIGITS)[: recipe.vocab_size]
    digits = [number // base**place % base for place in range(NUM_DIGITS)]
    return np.concatenate([words[digit] for digit in digits], axis=1)


def _orthogonal_words() -> NDArray[np.float32]:
    """Sylvester's Hadamard matrix: [DIGIT_BITS, DIGIT_BITS] of signs."""
    rows = range(DIGIT_BITS)
    return np.array([[(-1.0) ** (i & j).bit_count() for j in rows] for i in rows], np.float32)


def _weights(recipe: ProvenanceRecipe) -> dict[str, Tensor]:
    codes = torch.from_numpy(token_codes(recipe))
    embedding = torch.zeros(recipe.vocab_size, HIDDEN_SIZE)
    embedding[:, SECTIONS[0]] = codes
    embedding[:, CONSTANT_INDEX] = CONSTANT
    head = torch.zeros(recipe.vocab_size, HIDDEN_SIZE)
    head[:, SECTIONS[recipe.num_layers]] = codes
    weights = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": torch.ones(HIDDEN_SIZE),
        "lm_head.weight": head,
    }
    for layer in range(recipe.num_layers):
        for name, tensor in _layer(recipe, layer).items():
            weights[f"model.layers.{layer}.{name}.weight"] = tensor
    return weights


def _layer(recipe: ProvenanceRecipe, layer: int) -> dict[str, Tensor]:
    # The norm divides by the root mean square; its weight multiplies it back, so that the
    # attention sees codes of 1 and the constant as they are.
    norm_squared = CONSTANT**2 + (layer + 1) * CODE_BITS
    rms = math.sqrt(norm_squared / HIDDEN_SIZE)
    query, key = _query_and_key(recipe.layer_offsets[layer])
    q_proj = torch.zeros(recipe.num_heads * HEAD_DIM, HIDDEN_SIZE)
    k_proj = torch.zeros(recipe.num_kv_heads * HEAD_DIM, HIDDEN_SIZE)
    q_proj[:, CONSTANT_INDEX] = query.repeat(recipe.num_heads) / CONSTANT
    k_proj[:, CONSTANT_INDEX] = key.repeat(recipe.num_kv_heads) / CONSTANT
    return {
        "input_layernorm": torch.full((HIDDEN_SIZE,), rms),
        "post_attention_layernorm": torch.ones(HIDDEN_SIZE),
        "self_attn.q_proj": q_proj,
        "self_attn.k_proj": k_proj,
        "self_attn.v_proj": _values(recipe, layer),
        "self_attn.o_proj": _outputs(recipe, layer),
        "mlp.gate_proj": torch.zeros(INTERMEDIATE_SIZE, HIDDEN_SIZE),
        "mlp.up_proj": torch.zeros(INTERMEDIATE_SIZE, HIDDEN_SIZE),
        "mlp.down_proj": torch.zeros(HIDDEN_SIZE, INTERMEDIATE_SIZE),
    }


def _query_and_key(offset: int) -> tuple[Tensor, Tensor]:
    """Query and key before rotary embedding, which score PEAK_SCORE at `offset`: [HEAD_DIM]."""
    half = HEAD_DIM // 2
    frequency = torch.tensor([ROPE_THETA ** (-i / half) for i in range(half)], dtype=torch.float64)
    share = frequency**2 / (frequency**2).sum()
    # Scores are divided by sqrt(HEAD_DIM).
    amplitude = torch.sqrt(share * PEAK_SCORE * math.sqrt(HEAD_DIM))
    angle = -frequency * offset
    query = torch.cat([amplitude * torch.cos(angle), amplitude * torch.sin(angle)])
    key = torch.cat([amplitude, torch.zeros(half, dtype=torch.float64)])
    return query.float(), key.float()


def _held_bit(kv_head: int, index: int) -> int:
    """The code bit that a KV head's values hold at an index: rotated by whole digits."""
    return (index + kv_head * DIGIT_BITS) % CODE_BITS


def _values(recipe: ProvenanceRecipe, layer: int) -> Tensor:
    weight = torch.zeros(recipe.num_kv_heads * HEAD_DIM, HIDDEN_SIZE)
    for kv_head in range(recipe.num_kv_heads):
        for index in range(HEAD_DIM):
            source = SECTIONS[layer].start + _held_bit(kv_head, index)
            weight[kv_head * HEAD_DIM + index, source] = 1.0
    return weight


def _outputs(recipe: ProvenanceRecipe, layer: int) -> Tensor:
    weight = torch.zeros(HIDDEN_SIZE, recipe.num_heads * HEAD_DIM)
    bits_per_head = CODE_BITS // recipe.num_heads
    for head in range(recipe.num_heads):
        kv_head = head * recipe.num_kv_heads // recipe.num_heads
        for index in range(HEAD_DIM):
            bit = _held_bit(kv_head, index)
            if bit // bits_per_head == head:
                weight[SECTIONS[layer + 1].start + bit, head * HEAD_DIM + index] = 1.0
    return weight


def _config(recipe: ProvenanceRecipe) -> dict[str, Any]:
    window = recipe.sliding_window
    return {
        "architectures": ["MistralForCausalLM" if window else "LlamaForCausalLM"],
        "model_type": "mistral" if window else "llama",
        "vocab_size": recipe.vocab_size,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": recipe.num_layers,
        "num_attention_heads": recipe.num_heads,
        "num_key_value_heads": recipe.num_kv_heads,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": recipe.max_model_len,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": END_TOKEN_ID,
        "torch_dtype": recipe.dtype,
        **({"sliding_window": window} if window else {"mlp_bias": False}),
        CONFIG_KEY: msgspec.to_builtins(recipe),
    }


def _write_tokenizer(recipe: ProvenanceRecipe, folder: Path) -> None:
    """Words t4, t5, ... between blanks, for servers that will not start without a tokenizer.

    No word begins as a special token is written: transformers cuts those out of a text wherever
    they stand, in the middle of a word too.
    """
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [*special.values(), *(f"t{i}" for i in range(NUM_SPECIAL_TOKENS, recipe.vocab_size))]
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: token for token, word in enumerate(words)},
            "unk_token": special["unk_token"],
        },
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**6}
    _write_json(folder / "tokenizer_config.json", {**settings, **special})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
