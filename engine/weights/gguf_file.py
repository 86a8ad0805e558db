"""Reads a GGUF file as if it were a Hugging Face folder: names, layouts, values, configuration.

GGUF is llama.cpp's format. Its converter renames tensors, reorders the rows of Llama's query and
key matrices (rotated channels i and i + size / 2 become neighbours), and replaces Llama 3's
stretched positions by a tensor of divisors; all three are undone here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from torch import Tensor

from pagetwin.engine.errors import ModelError
from pagetwin.engine.layers.rotary import RopeConfig, rope_frequencies

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_LLAMA3_DIVISORS = "rope_freqs.weight"
_STORED_DTYPES = {
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


class GGUFFile:
    """One GGUF file, its header read and checked; tensors are read as they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
            raise ModelError(
                f"{path} is damaged, cut short or not a GGUF file: {error}; fetch it again"
            ) from None
        self._stored = {tensor.name: tensor for tensor in self._reader.tensors}
        self.architecture = str(self.metadata("general.architecture"))
        if self.architecture not in _ARCHITECTURES:
            raise ModelError(
                f"{path} holds a model of architecture {self.architecture!r}; of GGUF files, only "
                f"{', '.join(_ARCHITECTURES)} are supported"
            )

    def metadata(self, key: str, default: Any = None) -> Any:
        """A value of the header: number, string, bool or list; ModelError if there is none."""
        entry = self._reader.get_field(key)
        value = default if entry is None else entry.contents()
        if value is None:
            raise ModelError(f"{self.path} lacks {key} in its header; use a complete conversion")
        # The shortest decimal that gives the stored float32: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def has_metadata(self, key: str) -> bool:
        return self._reader.get_field(key) is not None

    @property
    def dtype(self) -> torch.dtype:
        """That of the matrices if it is one half precision for all, else float32: no rounding."""
        kinds = {t.tensor_type for t in self._reader.tensors if len(t.shape) > 1}
        return _STORED_DTYPES.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, dequantised to float32 as gguf.quants does, under its Hugging Face name."""
        for name, stored in self._stored.items():
            if name == _LLAMA3_DIVISORS:
                continue  # Part of the configuration: see _llama3_parameters.
            values = gguf.dequantize(stored.data, stored.tensor_type)
            # A copy where the values are still the file's own, which is mapped read-only.
            tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
            hf_name = hugging_face_name(name)
            if self.architecture == "llama":
                tensor = self._restore_row_order(hf_name, tensor)
            yield hf_name, tensor

    def _restore_row_order(self, name: str, tensor: Tensor) -> Tensor:
        if ".self_attn.q_proj." in name:
            num_heads = self._size("attention.head_count")
        elif ".self_attn.k_proj." in name:
            num_heads = self._num_kv_heads()
        else:
            return tensor
        pairs = tensor.reshape(num_heads, -1, 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)

    def hf_config(self) -> dict[str, Any]:
        """The config.json that this file's model would have, and tokenizer ids."""
        hidden_size, num_heads = self._size("embedding_length"), self._size("attention.head_count")
        head_size = self._size("attention.key_length", hidden_size // num_heads)
        return {
            "architectures": [_ARCHITECTURES[self.architecture]],
            "model_type": self.architecture,
            "vocab_size": int(self._embedding().shape[1]),
            "hidden_size": hidden_size,
            "intermediate_size": self._size("feed_forward_length"),
            "num_hidden_layers": self._size("block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self._num_kv_heads(),
            "head_dim": head_size,
            "hidden_act": "silu",
            "max_position_embeddings": self._size("context_length"),
            "rms_norm_eps": self.metadata(f"{self.architecture}.attention.layer_norm_rms_epsilon"),
            "rope_parameters": self._rope_parameters(head_size),
            "tie_word_embeddings": "output.weight" not in self._stored,
            "attention_bias": "blk.0.attn_q.bias" in self._stored,
            "mlp_bias": "blk.0.ffn_gate.bias" in self._stored,
            **self.token_ids(),
        }

    def token_ids(self) -> dict[str, Any]:
        """bos, eos and pad ids, as far as the header has them; a turn's end counts as eos."""
        ids: dict[str, Any] = {}
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            if self.has_metadata(f"tokenizer.ggml.{key}_token_id"):
                ids[f"{name}_token_id"] = self.metadata(f"tokenizer.ggml.{key}_token_id")
        if self.has_metadata("tokenizer.ggml.eot_token_id"):
            end_of_turn = self.metadata("tokenizer.ggml.eot_token_id")
            if end_of_turn != ids.get("eos_token_id", end_of_turn):
                ids["eos_token_id"] = [ids["eos_token_id"], end_of_turn]
        return ids

    def _size(self, key: str, default: int | None = None) -> int:
        return int(self.metadata(f"{self.architecture}.{key}", default))

    def _num_kv_heads(self) -> int:
        return self._size("attention.head_count_kv", self._size("attention.head_count"))

    def _embedding(self) -> gguf.ReaderTensor:
        if "token_embd.weight" not in self._stored:
            raise ModelError(f"{self.path} lacks token_embd.weight; use a complete conversion")
        return self._stored["token_embd.weight"]

    def _rope_parameters(self, head_size: int) -> dict[str, Any]:
        theta = self.metadata(f"{self.architecture}.rope.freq_base", 10000.0)
        scaling = self.metadata(f"{self.architecture}.rope.scaling.type", "none")
        parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
        if _LLAMA3_DIVISORS in self._stored:
            parameters.update(self._llama3_parameters(theta, head_size))
        elif scaling in ("linear", "yarn"):
            parameters["rope_type"] = scaling
            parameters["factor"] = self.metadata(f"{self.architecture}.rope.scaling.factor")
        elif scaling != "none":
            raise ModelError(f"{self.path} has rope scaling {scaling!r}, which is not supported")
        if scaling == "yarn":
            parameters["original_max_position_embeddings"] = self._size(
                "rope.scaling.original_context_length"
            )
        return parameters

    def _llama3_parameters(self, theta: float, head_size: int) -> dict[str, Any]:
        """The parameters whose divisors the file stores: Llama 3's own, but for the factor.

        The slowest channel is divided by the whole factor, so the largest divisor is the factor.
        """
        stored = torch.from_numpy(self._stored[_LLAMA3_DIVISORS].data.copy())
        parameters = {
            "rope_type": "llama3",
            "factor": round(float(stored.max()), 3),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        plain = RopeConfig(rotary_size=head_size, theta=theta, max_position_embeddings=8192)
        stretched = RopeConfig(
            rotary_size=head_size,
            theta=theta,
            max_position_embeddings=8192,
            rope_type="llama3",
            parameters=parameters,
        )
        divisors = rope_frequencies(plain)[0] / rope_frequencies(stretched)[0]
        if divisors.shape != stored.shape or not torch.allclose(divisors, stored, rtol=1e-4):
            raise ModelError(
                f"{self.path} stretches positions ({_LLAMA3_DIVISORS}) otherwise than Llama 3 "
                "does, which is not supported; use the model's safetensors"
            )
        return parameters


def hugging_face_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; a name of no known kind stays as it is."""
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        return _GLOBAL_NAMES.get(name, name)
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"
