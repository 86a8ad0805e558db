"""A checkpoint fits a model exactly, or is refused with the names of what does not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagetwin.engine.errors import ModelError
from pagetwin.engine.weights.assign import assign_weights, fill_with_dummy_weights

SHAPES = {"embed.weight": (6, 4), "layer.bias": (4,), "layer.weight": (4, 4), "norm.weight": (4,)}
TIED = {"head.weight": "embed.weight"}


def empty_slots() -> dict[str, Tensor]:
    return {name: torch.full(shape, torch.nan) for name, shape in SHAPES.items()}


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def assign(slots: dict[str, Tensor], tensors: list[tuple[str, Tensor]]) -> tuple[str, ...]:
    return assign_weights(slots, tensors, tied_names=TIED, source="the folder")


@given(order=st.permutations(list(SHAPES)))
def test_order_changes_nothing(order: list[str]) -> None:
    slots, tensors = empty_slots(), some_tensors()
    assert assign(slots, [(name, tensors[name]) for name in order]) == ()
    assert all(torch.equal(slots[name], tensors[name]) for name in SHAPES)


@given(
    removed=st.sets(st.sampled_from(list(SHAPES))),
    repeated=st.sets(st.sampled_from(list(SHAPES))),
    added=st.sets(st.sampled_from(["extra.a", "extra.b", "extra.c"])),
    cut=st.sets(st.sampled_from(list(SHAPES))),
    data=st.data(),
)
def test_every_misfit_is_named_with_its_count(
    removed: set[str], repeated: set[str], added: set[str], cut: set[str], data: st.DataObject
) -> None:
    repeated, cut = repeated - removed, cut - removed - repeated
    tensors = some_tensors()
    stream = [(n, tensors[n][:2] if n in cut else tensors[n]) for n in SHAPES if n not in removed]
    stream += [(name, tensors[name]) for name in sorted(repeated)]
    stream += [(name, torch.zeros(1)) for name in sorted(added)]
    stream = data.draw(st.permutations(stream))
    groups = {
        "missing": removed,
        "stored more than once": repeated,
        "not part of the model": added,
        "of the wrong shape": cut,
    }
    if not any(groups.values()):
        assign(empty_slots(), stream)
        return
    with pytest.raises(ModelError) as raised:
        assign(empty_slots(), stream)
    message = str(raised.value)
    assert "\n" not in message
    assert "the folder" in message
    for kind, names in groups.items():
        assert (kind in message) == bool(names)
        if names:
            assert f"{len(names)} tensor{'s' * (len(names) > 1)} {kind}: " in message
        assert all(name in message for name in names)


def test_many_misfits_are_counted_and_the_first_are_named() -> None:
    stream = [*some_tensors().items(), *((f"extra.{i}", torch.zeros(1)) for i in range(30))]
    with pytest.raises(ModelError, match=r"30 tensors not part .* extra\.3 and 26 more;"):
        assign(empty_slots(), stream)


def test_wrong_shapes_are_stated() -> None:
    tensors = {**some_tensors(), "layer.weight": torch.zeros(4, 3)}
    with pytest.raises(ModelError, match=r"layer\.weight \(\[4, 3\], needed \[4, 4\]\)"):
        assign(empty_slots(), list(tensors.items()))


@pytest.mark.parametrize("first", ["embed.weight", "head.weight"])
def test_a_tied_head_may_be_stored_too_or_instead(first: str) -> None:
    tensors = some_tensors()
    embedding = tensors.pop("embed.weight")
    for names in ([first], [first, *({"embed.weight", "head.weight"} - {first})]):
        slots = empty_slots()
        assign(slots, [*((name, embedding) for name in names), *tensors.items()])
        assert torch.equal(slots["embed.weight"], embedding)


def test_a_tied_head_that_differs_is_refused() -> None:
    tensors = some_tensors()
    tensors["head.weight"] = tensors["embed.weight"] + 1
    with pytest.raises(ModelError, match=r"tied to: head\.weight and embed\.weight;"):
        assign(empty_slots(), list(tensors.items()))


def test_derived_tensors_are_reported_not_loaded() -> None:
    name = "layers.0.rotary_emb.inv_freq"
    stream = [*some_tensors().items(), (name, torch.zeros(2))]
    assert assign(empty_slots(), stream) == (name,)


def test_values_are_rounded_to_the_dtype_of_the_slot() -> None:
    slots = {name: slot.bfloat16() for name, slot in empty_slots().items()}
    tensors = some_tensors()
    assign(slots, list(tensors.items()))
    assert all(torch.equal(slots[name], tensors[name].bfloat16()) for name in SHAPES)


@given(seed=st.integers(0, 2**31))
def test_dummy_weights_depend_on_the_seed_alone(seed: int) -> None:
    first, second, other = empty_slots(), empty_slots(), empty_slots()
    fill_with_dummy_weights(first, seed)
    fill_with_dummy_weights(dict(reversed(second.items())), seed)
    fill_with_dummy_weights(other, seed + 1)
    assert all(torch.equal(first[name], second[name]) for name in SHAPES)
    assert not torch.equal(first["layer.weight"], other["layer.weight"])
    assert first["layer.bias"].eq(0).all()
    assert first["norm.weight"].eq(1).all()
