"""The normalisation is Hugging Face's, with the addition before it or without."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pagetwin.engine.layers.linear import NewParameter
from pagetwin.engine.layers.norm import RMSNorm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make(size: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[RMSNorm, LlamaRMSNorm]:
    ours = RMSNorm(size, 1e-5, NewParameter(dtype, torch.device("cpu")))
    theirs = LlamaRMSNorm(size, eps=1e-5).to(dtype)
    ours.weight.copy_(torch.randn(size, generator=generator))
    theirs.load_state_dict({"weight": ours.weight})
    return ours, theirs


@given(
    rows=st.integers(1, 5),
    size=st.sampled_from([1, 7, 64]),
    scale=st.sampled_from([1e-4, 1.0, 300.0]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_bit_equal_to_hugging_face(
    rows: int, size: int, scale: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = make(size, dtype, generator)
    x = (torch.randn(rows, 2, size, generator=generator) * scale).to(dtype)
    assert torch.equal(ours(x), theirs(x))
