"""A row's bits depend on its own sequence alone (see the word on bits in torch_backend.py)."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagetwin.engine.attention.tiles import TILE
from pagetwin.kernels.trial import Span, TrialSequence, make_sequence

Attend = Callable[..., Tensor]

LENGTH = 3 * TILE + 21

fixed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""`attend` keeps nothing between examples."""

models = st.builds(
    lambda num_kv_heads, group, head_size: {
        "num_kv_heads": num_kv_heads,
        "num_heads": num_kv_heads * group,
        "head_size": head_size,
        "dtype": torch.float32,
    },
    num_kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 4, 8]),
    head_size=st.sampled_from([32, 40, 64, 80, 128, 192, 256]),
)
"""In float32 alone: in bfloat16 and float16 a processor with matrix units (AMX) computes a row in
its own way each time."""


def blas_rounds_rows_alike() -> bool:
    """Whether a row of a product has the same bits wherever it stands among how many others,
    in a single product and in one of a batch."""
    generator = torch.Generator().manual_seed(0)
    for inner in (32, 80, 256):
        left = torch.randn(320, inner, generator=generator)
        right = torch.randn(inner, TILE, generator=generator)
        full = left @ right
        for start, end in ((0, 16), (5, 37), (1, 257), (8, 40)):
            if not torch.equal(left[start:end] @ right, full[start:end]):
                return False
        for rows in (16, 32):
            batch = left.view(-1, rows, inner)
            products = torch.bmm(batch, right.expand(len(batch), -1, -1))
            if not torch.equal(products.flatten(0, 1), full):
                return False
    return True


needs_row_stable_blas = pytest.mark.skipif(
    not blas_rounds_rows_alike(), reason="this BLAS rounds a row by its place among the others"
)


def whole(sequence: TrialSequence) -> Span:
    return Span(sequence, 0, len(sequence.q))


@needs_row_stable_blas
@fixed
@given(
    model=models,
    cuts=st.sets(st.integers(1, LENGTH - 1), max_size=5),
    window=st.sampled_from([0, 40]),
)
def test_chunks_give_the_bits_of_the_whole(
    attend: Attend, model: dict[str, Any], cuts: set[int], window: int
) -> None:
    sequence = make_sequence(LENGTH, **model)
    edges = [0, *sorted(cuts), LENGTH]
    chunks = [
        attend([Span(sequence, start, end)], sliding_window=window)
        for start, end in pairwise(edges)
    ]
    assert torch.equal(torch.cat(chunks), attend([whole(sequence)], sliding_window=window))


@needs_row_stable_blas
@settings(fixed, max_examples=15)
@given(model=models, window=st.sampled_from([0, 40, TILE]))
def test_decode_rows_give_the_bits_of_prefill(
    attend: Attend, model: dict[str, Any], window: int
) -> None:
    """Each row in turn as the only row of its sequence, all of them in one batch."""
    sequence = make_sequence(LENGTH, **model)
    rows = attend([Span(sequence, p, p + 1) for p in range(LENGTH)], sliding_window=window)
    assert torch.equal(rows, attend([whole(sequence)], sliding_window=window))


@fixed
@given(
    model=models,
    shares=st.lists(st.tuples(st.integers(1, LENGTH), st.booleans()), min_size=2, max_size=6),
    block_size=st.sampled_from([8, 16, 100]),
)
def test_neighbours_and_block_size_do_not_change_a_bit(
    attend: Attend,
    model: dict[str, Any],
    shares: list[tuple[int, bool]],
    block_size: int,
) -> None:
    spans = [
        Span(make_sequence(LENGTH, seed=seed, **model), end - 1 if alone else end // 2, end)
        for seed, (end, alone) in enumerate(shares)
    ]
    together = attend(spans, block_size=block_size)
    alone = [attend([span]) for span in spans]
    assert torch.equal(together, torch.cat(alone))


@needs_row_stable_blas
def test_the_number_of_threads_does_not_change_a_bit(attend: Attend) -> None:
    sequence = make_sequence(LENGTH, num_heads=8, num_kv_heads=2, head_size=64)
    spans = [whole(sequence), *(Span(sequence, p, p + 1) for p in (0, 99, 300))]
    num_threads = torch.get_num_threads()
    outs = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        outs.append(attend(spans))
    torch.set_num_threads(num_threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
