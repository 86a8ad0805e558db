"""Every member of the family computes what Hugging Face computes from the same folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from pagetwin.engine.config import ModelConfig
from pagetwin.engine.models.loader import LoadedModel, load_model

CPU = torch.device("cpu")
# Logits are sums of 32 products behind 3 layers of sums of at most 64: a few hundred roundings
# of 2^-24 = 6e-8 each, most of which cancel. Measured: at most 6e-7 of the largest logit.
BOUND = 4e-6

MakeModel = Callable[[str], PreTrainedModel]
PagedLogits = Callable[[LoadedModel, Sequence[Sequence[int]], int], list[Tensor]]


def load(folder: Path, dtype: str = "auto") -> LoadedModel:
    config = {"model": str(folder), "dtype": dtype}
    return load_model(ModelConfig(**config), CPU)  # type: ignore[arg-type]


def hf_logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits[0] for prompt in prompts]


def random_prompts(lengths: Sequence[int], vocab_size: int = 96) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]


def test_logits_and_argmax_are_those_of_hugging_face(
    config_name: str, hf_model: MakeModel, paged_logits: PagedLogits, tmp_path: Path
) -> None:
    model = hf_model(config_name)
    model.save_pretrained(tmp_path)
    prompts = random_prompts([256, 256, 255, 200, 63, 1])
    assert sum(map(len, prompts)) > 1000
    ours = torch.cat(paged_logits(load(tmp_path), prompts, 300))
    theirs = torch.cat(hf_logits(model, prompts))
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= BOUND * theirs.abs().max()
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("name", ["llama_rope_llama3", "mistral_window", "qwen3_window_tied"])
def test_chunks_do_not_change_the_logits(
    name: str, hf_model: MakeModel, paged_logits: PagedLogits, tmp_path: Path
) -> None:
    hf_model(name).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    prompts = random_prompts([40, 17, 5])
    whole = torch.cat(paged_logits(loaded, prompts, 40))

    @settings(max_examples=10, deadline=None)
    @given(chunk=st.integers(1, 39))
    def holds_for(chunk: int) -> None:
        chunked = torch.cat(paged_logits(loaded, prompts, chunk))
        assert (chunked - whole).abs().max() <= BOUND * whole.abs().max()

    holds_for()


@pytest.mark.parametrize("name", ["mistral_window", "qwen2_window"])
def test_the_window_matters(
    name: str, hf_model: MakeModel, paged_logits: PagedLogits, tmp_path: Path
) -> None:
    model = hf_model(name)
    model.save_pretrained(tmp_path)
    [prompt] = random_prompts([60])
    other = [(prompt[0] + 1) % 96, *prompt[1:]]
    ours, changed = paged_logits(load(tmp_path), [prompt, other], 60)
    assert not torch.equal(ours[5], changed[5])
    if name == "mistral_window":  # Three layers of 7 reach 18 tokens back, no further.
        assert torch.equal(ours[19:], changed[19:])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_half_precision_is_as_close_to_float32_as_hugging_face_is(
    name: str, dtype: str, hf_model: MakeModel, paged_logits: PagedLogits, tmp_path: Path
) -> None:
    half = getattr(torch, dtype)
    model = hf_model(name).to(half)
    model.save_pretrained(tmp_path)
    prompts = random_prompts([200, 100])
    ours = torch.cat(paged_logits(load(tmp_path), prompts, 300))
    theirs = torch.cat(hf_logits(model, prompts)).float()
    exact = torch.cat(hf_logits(model.float(), prompts))
    assert load(tmp_path).spec.dtype == half
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() <= 1.5 * (theirs - exact).abs().max()
    assert not torch.equal(ours, ours.to(half).float()), "logits must not be rounded"


def test_every_parameter_has_a_slot(config_name: str, hf_model: MakeModel, tmp_path: Path) -> None:
    hf_model(config_name).save_pretrained(tmp_path)
    model = load(tmp_path).model
    assert isinstance(model, torch.nn.Module)
    slots = model.checkpoint_slots()
    assert sum(slot.numel() for slot in slots.values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    for slot in slots.values():
        slot.fill_(0.25)
    assert all(bool((parameter == 0.25).all()) for parameter in model.parameters())
