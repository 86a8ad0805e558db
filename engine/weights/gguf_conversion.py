"""Turns a GGUF file into a Hugging Face folder: weights, configuration, tokenizer.

Weights are stored in the file's own dtype, quantised ones as float32, which holds exactly what
gguf.quants computes from the blocks (a Q4_1 weight fits neither bfloat16 nor float16).
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pagetwin.engine.errors import ModelError
from pagetwin.engine.weights.gguf_file import GGUFFile

_CONTROL, _USER_DEFINED = 3, 4
"""Token types in tokenizer.ggml.token_type that are matched before the text is split."""


def convert_gguf(path: Path, folder: Path) -> None:
    """Write the model in `path` into the existing `folder`, as `save_pretrained` would lay it out.

    Both `pagetwin` and `transformers` load the result. ModelError if the file is damaged or its
    tokenizer is not of a kind that is converted exactly.
    """
    file = GGUFFile(path)
    tokenizer = _build_tokenizer(file)
    tensors = {name: tensor.to(file.dtype).contiguous() for name, tensor in file.tensors()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = str(file.dtype).removeprefix("torch.")
    _write_json(folder / "config.json", {**file.hf_config(), "dtype": dtype})
    _write_json(folder / "generation_config.json", file.token_ids())
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(file))


def _build_tokenizer(file: GGUFFile) -> Tokenizer:
    """Byte-level BPE, from the file's vocabulary and merges."""
    tokens: list[str] = file.metadata("tokenizer.ggml.tokens")
    merges: list[str] = file.metadata("tokenizer.ggml.merges", [])
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = _pre_tokenizer(file)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, file.metadata("tokenizer.ggml.token_type"), strict=True):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    return tokenizer


def _pre_tokenizer(file: GGUFFile) -> pre_tokenizers.PreTokenizer:
    """How text is split before merging. SmolLM cuts out every digit first; GPT-2 does not."""
    kind = (file.metadata("tokenizer.ggml.model"), file.metadata("tokenizer.ggml.pre", "default"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == ("gpt2", "smollm"):
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    if kind in (("gpt2", "gpt-2"), ("gpt2", "default")):
        return byte_level
    raise ModelError(
        f"{file.path} has a tokenizer of kind {'/'.join(kind)}, which is not converted; name a "
        "folder with the model's tokenizer files with the knob model.tokenizer"
    )


def _tokenizer_config(file: GGUFFile) -> dict[str, Any]:
    tokens = file.metadata("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.hf_config()["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        if file.has_metadata(f"tokenizer.ggml.{key}_token_id"):
            token_id = file.metadata(f"tokenizer.ggml.{key}_token_id")
            config[f"{name}_token"] = tokens[token_id]
    if file.has_metadata("tokenizer.chat_template"):
        config["chat_template"] = file.metadata("tokenizer.chat_template")
    return config


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
