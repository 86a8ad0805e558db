"""Merged projections hold each checkpoint matrix in its own rows, whatever their sizes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.engine.layers.activation import silu_and_multiply
from pagetwin.engine.layers.linear import Linear, NewParameter
from pagetwin.engine.layers.norm import RMSNorm

NEW = NewParameter(torch.float32, torch.device("cpu"))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    num_inputs=st.integers(1, 9),
    bias=st.booleans(),
)
def test_parts_come_out_side_by_side_in_order(
    sizes: list[int], num_inputs: int, bias: bool
) -> None:
    generator = torch.Generator().manual_seed(len(sizes))
    layer = Linear(num_inputs, {f"p{i}": n for i, n in enumerate(sizes)}, NEW, bias=bias)
    slots = dict(layer.slots("x"))
    for slot in slots.values():
        slot.copy_(torch.randn(slot.shape, generator=generator))
    x = torch.randn(3, num_inputs, generator=generator)
    outputs = layer(x).split(sizes, dim=-1)
    for i, size in enumerate(sizes):
        weight = slots[f"x.p{i}.weight"]
        assert weight.shape == (size, num_inputs)
        alone = F.linear(x, weight, slots.get(f"x.p{i}.bias"))
        torch.testing.assert_close(outputs[i], alone, rtol=0, atol=1e-5)
    assert len(slots) == len(sizes) * (1 + bias)


def test_the_gate_is_the_first_half() -> None:
    gate, up = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    joined = torch.cat((gate, up), dim=-1)
    assert torch.equal(silu_and_multiply(joined), F.silu(gate) * up)
    assert not torch.equal(silu_and_multiply(joined), F.silu(up) * gate)


def filled(num_inputs: int, num_outputs: int, *, bias: bool = False) -> Linear:
    generator = torch.Generator().manual_seed(num_inputs)
    layer = Linear(num_inputs, {"p": num_outputs}, NEW, bias=bias)
    for slot in dict(layer.slots("x")).values():
        slot.copy_(torch.randn(slot.shape, generator=generator))
    return layer


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_with_what_stands_around_it_is_the_steps_one_by_one(bias: bool) -> None:
    layer, norm = filled(6, 8, bias=bias), RMSNorm(6, 1e-5, NEW)
    norm.weight.copy_(torch.arange(6) - 2.5)
    x, residual = torch.randn(3, 6), torch.randn(3, 8)
    torch.testing.assert_close(layer.of_norm(x, norm), layer(norm(x)))
    gate, up = layer(norm(x)).chunk(2, dim=-1)
    torch.testing.assert_close(layer.gated_of_norm(x, norm), F.silu(gate) * up)
    torch.testing.assert_close(layer.added_to(residual.clone(), x), residual + layer(x))
