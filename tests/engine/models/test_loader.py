"""A model loads the same from every format, and a wrong folder says what is wrong with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from pagetwin.engine.config import ModelConfig
from pagetwin.engine.errors import ModelError
from pagetwin.engine.models.loader import LoadedModel, load_model

MakeModel = Callable[[str], PreTrainedModel]


def load(path: Path, **knobs: Any) -> LoadedModel:
    return load_model(ModelConfig(model=str(path), **knobs), torch.device("cpu"))


def weights(loaded: LoadedModel) -> dict[str, Tensor]:
    return loaded.model.checkpoint_slots()


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_every_format_gives_the_same_weights(
    config_name: str, hf_model: MakeModel, tmp_path: Path
) -> None:
    model = hf_model(config_name)
    single, sharded, pickled = (tmp_path / name for name in ("single", "sharded", "pickled"))
    model.save_pretrained(single)
    model.save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    pickled.mkdir()
    model.config.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    edit_json(pickled / "config.json", architectures=[type(model).__name__])
    for folder in (single, sharded, pickled):
        assert equal(weights(load(folder)), model.state_dict())


def test_the_spec_tells_the_sizes(hf_model: MakeModel, tmp_path: Path) -> None:
    hf_model("qwen3_window_tied").save_pretrained(tmp_path)
    loaded = load(tmp_path)
    spec = loaded.spec
    assert (spec.num_layers, spec.num_attention_heads, spec.num_kv_heads) == (3, 4, 2)
    assert (spec.head_size, spec.vocab_size, spec.max_model_len) == (16, 96, 256)
    assert spec.sliding_windows == (0, 9, 9)
    assert spec.dtype == torch.float32
    assert loaded.folder == tmp_path


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(2, None, (2,)), (2, [5, 6], (5, 6)), ([3, 4], 5, (5,)), (None, 7, (7,)), (None, None, ())],
)
def test_generation_config_decides_what_ends_a_text(
    config: Any, generation: Any, expected: tuple[int, ...], hf_model: MakeModel, tmp_path: Path
) -> None:
    hf_model("llama").save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", eos_token_id=config)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert load(tmp_path).spec.eos_token_ids == expected


def test_dtype_is_the_checkpoints_unless_another_is_asked_for(
    hf_model: MakeModel, tmp_path: Path
) -> None:
    model: Any = hf_model("llama").to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    assert load(tmp_path).spec.dtype == torch.bfloat16
    widened = load(tmp_path, dtype="float32")
    assert widened.spec.dtype == torch.float32
    assert equal(weights(widened), model.float().state_dict())
    edit_json(tmp_path / "config.json", dtype=None, torch_dtype=None)
    assert load(tmp_path).spec.dtype == torch.bfloat16


def test_dummy_weights_need_only_a_config(hf_model: MakeModel, tmp_path: Path) -> None:
    hf_model("qwen2").config.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", architectures=["Qwen2ForCausalLM"])
    first, second = (load(tmp_path, load_format="dummy", seed=3) for _ in range(2))
    other = load(tmp_path, load_format="dummy", seed=4)
    assert equal(weights(first), weights(second))
    assert not equal(weights(first), weights(other))


def test_an_untied_head_stays_apart_from_the_embedding(hf_model: MakeModel, tmp_path: Path) -> None:
    model = hf_model("llama")
    model.save_pretrained(tmp_path)
    loaded = weights(load(tmp_path))
    assert not torch.equal(loaded["lm_head.weight"], loaded["model.embed_tokens.weight"])
    edit_weights(tmp_path, lambda tensors: tensors.__delitem__("lm_head.weight"))
    with pytest.raises(ModelError, match=r"1 tensor missing: lm_head\.weight"):
        load(tmp_path)


def test_a_tied_head_may_be_stored_if_it_is_equal(hf_model: MakeModel, tmp_path: Path) -> None:
    hf_model("llama_tied").save_pretrained(tmp_path)

    def store_head(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_weights(tmp_path, store_head)
    load(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.ones(96, 32)}))
    with pytest.raises(ModelError, match=r"1 tensor unlike .* tied to: .*lm_head\.weight"):
        load(tmp_path)


def test_stored_frequencies_are_left_aside_and_said_so(hf_model: MakeModel, tmp_path: Path) -> None:
    hf_model("llama").save_pretrained(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(tmp_path, lambda tensors: tensors.__setitem__(name, torch.ones(4)))
    assert load(tmp_path).ignored_tensors == (name,)


def test_missing_extra_and_misshapen_tensors_are_all_named(
    hf_model: MakeModel, tmp_path: Path
) -> None:
    hf_model("llama").save_pretrained(tmp_path)

    def damage(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
        tensors["model.norm.weight"] = torch.ones(31)

    edit_weights(tmp_path, damage)
    with pytest.raises(ModelError) as raised:
        load(tmp_path)
    message = str(raised.value)
    assert "1 tensor missing: model.layers.1.mlp.up_proj.weight" in message
    assert "1 tensor not part of the model: model.layers.0.self_attn.q_proj.bias" in message
    assert "model.norm.weight ([31], needed [32])" in message
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not supported"),
        ({"architectures": None}, "names no architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with 'gptq'"),
        ({"dtype": "float8"}, "dtype 'float8' in config.json is not supported"),
        ({"rope_parameters": {"rope_type": "su"}}, "rope_type 'su' in config.json"),
    ],
)
def test_an_unsupported_config_says_what_is_not_supported(
    changes: dict[str, Any], message: str, hf_model: MakeModel, tmp_path: Path
) -> None:
    hf_model("llama").save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(ModelError, match=message) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", ["no folder", "no config", "no json", "no weights", "cut"])
def test_a_damaged_folder_gives_one_line_with_its_path(
    damage: str, hf_model: MakeModel, tmp_path: Path
) -> None:
    hf_model("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    path = tmp_path
    if damage == "no folder":
        path = tmp_path / "elsewhere"
    elif damage == "no config":
        (tmp_path / "config.json").unlink()
    elif damage == "no json":
        (tmp_path / "config.json").write_text("{")
    elif damage == "no weights":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError) as raised:
        load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_without_any_tensor_is_refused_in_one_line(
    hf_model: MakeModel, tmp_path: Path
) -> None:
    hf_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if "dtype" not in name})
    )
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="no tensor"):
        load(tmp_path)
