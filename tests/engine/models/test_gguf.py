"""A GGUF file gives the model that it was made from: names, row order, values, configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pagetwin.engine.config import ModelConfig
from pagetwin.engine.errors import ModelError
from pagetwin.engine.layers.rotary import RopeConfig, rope_frequencies
from pagetwin.engine.models.loader import LoadedModel, load_model
from pagetwin.engine.weights.gguf_conversion import convert_gguf
from pagetwin.engine.weights.gguf_file import GGUFFile

MakeModel = Callable[[str], PreTrainedModel]
WriteGGUF = Callable[..., None]
CPU = torch.device("cpu")
NAMES = ["llama", "llama_tied", "llama_head_dim", "llama_rope_linear", "qwen2", "qwen3"]


def load(path: Path, **knobs: Any) -> LoadedModel:
    return load_model(ModelConfig(model=str(path), **knobs), CPU)


def rounded(tensor: Tensor, kind: Kind) -> Tensor:
    if tensor.ndim == 1 or kind == Kind.F32:
        return tensor
    return torch.from_numpy(gguf.dequantize(gguf.quantize(tensor.numpy(), kind), kind))


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1])
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_that_the_file_was_made_from(
    name: str, kind: Kind, hf_model: MakeModel, gguf_writer: WriteGGUF, tmp_path: Path
) -> None:
    model = hf_model(name)
    path = tmp_path / "model.gguf"
    gguf_writer(path, model, kind)
    loaded = load(path, dtype="float32")
    slots = loaded.model.checkpoint_slots()
    for slot_name, slot in slots.items():
        assert torch.equal(slot, rounded(model.state_dict()[slot_name], kind)), slot_name
    dtypes = {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
    assert load(path).spec.dtype == dtypes.get(kind, torch.float32)
    assert loaded.folder == tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_file_and_converted_folder_are_those_of_hugging_face(
    name: str,
    hf_model: MakeModel,
    gguf_writer: WriteGGUF,
    paged_logits: Callable[..., list[Tensor]],
    tmp_path: Path,
) -> None:
    model = hf_model(name)
    folder = tmp_path / "converted"
    folder.mkdir()
    gguf_writer(tmp_path / "model.gguf", model)
    convert_gguf(tmp_path / "model.gguf", folder)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
    with torch.inference_mode():
        converted = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        expected = model(torch.tensor([prompt])).logits[0]
        assert torch.equal(converted(torch.tensor([prompt])).logits[0], expected)
    for path in (tmp_path / "model.gguf", folder):
        loaded = load(path)
        [logits] = paged_logits(loaded, [prompt], 16)
        assert (logits - expected).abs().max() <= 4e-6 * expected.abs().max()
        assert loaded.spec.eos_token_ids == (2,)


def test_the_converted_tokenizer_reads_and_writes_text(
    hf_model: MakeModel, gguf_writer: WriteGGUF, tmp_path: Path
) -> None:
    gguf_writer(tmp_path / "model.gguf", hf_model("llama"))
    convert_gguf(tmp_path / "model.gguf", tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab  12<|im_end|>")) == [
        "ab",
        "ĠĠ",
        "1",
        "2",
        "<|im_end|>",
    ]
    assert tokenizer.eos_token == "<|im_end|>"
    chat = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "ab"


def test_llama3_divisors_give_back_their_parameters(tmp_path: Path) -> None:
    parameters = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = RopeConfig(rotary_size=64, theta=5e5, max_position_embeddings=8192)
    stretched = RopeConfig(
        rotary_size=64,
        theta=5e5,
        max_position_embeddings=8192,
        rope_type="llama3",
        parameters=parameters,
    )
    divisors = rope_frequencies(plain)[0] / rope_frequencies(stretched)[0]
    for name, values in (("right", divisors), ("wrong", divisors.sqrt())):
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for add, size in (
            (writer.add_block_count, 1),
            (writer.add_context_length, 131072),
            (writer.add_embedding_length, 128),
            (writer.add_feed_forward_length, 64),
            (writer.add_head_count, 2),
        ):
            add(size)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(5e5)
        writer.add_tensor("token_embd.weight", torch.zeros(96, 128).numpy())
        writer.add_tensor("rope_freqs.weight", values.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    config = GGUFFile(tmp_path / "right.gguf").hf_config()
    assert config["rope_parameters"] == {"rope_type": "llama3", "rope_theta": 5e5, **parameters}
    assert config["rms_norm_eps"] == 1e-5
    with pytest.raises(ModelError, match="otherwise than Llama 3"):
        GGUFFile(tmp_path / "wrong.gguf").hf_config()


def test_a_file_cut_anywhere_is_refused_in_one_line(
    hf_model: MakeModel, gguf_writer: WriteGGUF, tmp_path: Path
) -> None:
    gguf_writer(tmp_path / "whole.gguf", hf_model("llama"))
    whole = (tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"

    @settings(deadline=None, max_examples=60)
    @given(part=st.floats(0, 1, exclude_max=True))
    def holds_for(part: float) -> None:
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ModelError) as raised:
            load(path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)

    holds_for()


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF\x63\x00\x00\x00" + bytes(64)])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.gguf is damaged, cut short or not a GGUF file"):
        load(path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"architecture 'gemma3'; .* llama, qwen2, qwen3"):
        load(tmp_path / "model.gguf")


def test_biases_are_found_by_their_presence(
    hf_model: MakeModel, gguf_writer: WriteGGUF, tmp_path: Path
) -> None:
    for name, expected in (("llama", False), ("llama_biased", True)):
        path = tmp_path / f"{name}.gguf"
        gguf_writer(path, hf_model(name))
        config = GGUFFile(path).hf_config()
        assert (config["attention_bias"], config["mlp_bias"]) == (expected, expected)
        load(path)


def test_the_format_can_be_asked_for(
    hf_model: MakeModel, gguf_writer: WriteGGUF, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"should hold one \.gguf file, found none"):
        load(tmp_path, load_format="gguf")
    gguf_writer(tmp_path / "model.gguf", hf_model("llama"))
    assert load(tmp_path, load_format="gguf").spec.num_layers == 3
    assert load(tmp_path / "model.gguf", load_format="dummy").spec.num_layers == 3
    with pytest.raises(ModelError, match="is a file, and load_format='bin' needs a folder"):
        load(tmp_path / "model.gguf", load_format="bin")
