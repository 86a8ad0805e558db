"""The block-copy kernel against its reference, bit for bit."""

import pytest
import torch

from pagetwin.kernels import reference
from pagetwin.kernels.block_copy import (
    copy_blocks,
    copy_blocks_op,
    move_blocks,
    move_blocks_op,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [(1, 1, 40), (16, 3, 64)])
def test_copies_what_the_reference_copies(
    device: torch.device, dtype: torch.dtype, block: tuple[int, int, int]
) -> None:
    pool = torch.randn(4, 7, *block, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    sources = torch.tensor([1, 1, 6], device=device)
    destinations = torch.tensor([2, 5, 0], device=device)
    expected = pool.clone()
    reference.copy_blocks(expected, sources, destinations)
    assert not torch.equal(expected, pool)
    copy_blocks(pool, sources, destinations)
    assert torch.equal(pool, expected)


def test_moves_between_pools_that_are_laid_out_differently(device: torch.device) -> None:
    """Planes outside blocks, as on the device, and blocks outside planes, as on the host."""
    pool = torch.randn(4, 7, 3, 50, device=device)
    by_block = torch.randn(5, 4, 3, 50, device=device)
    ids = torch.tensor([6, 0, 3], device=device), torch.tensor([0, 4, 1], device=device)
    for source, target, sources, destinations in (
        (pool, by_block.transpose(0, 1), *ids),
        (by_block.transpose(0, 1), pool, *reversed(ids)),
    ):
        expected = target.clone()
        reference.move_blocks(source, expected, sources, destinations)
        assert not torch.equal(expected, target)
        move_blocks(source, target, sources, destinations)
        assert torch.equal(target, expected)
        pool.copy_(torch.randn(pool.shape))


def test_blocks_more_than_two_to_the_31_elements_away_are_reached(device: torch.device) -> None:
    # Untouched memory costs nothing on a CPU; blocks lie 2^30 elements apart.
    memory = torch.empty(2**31 + 32, dtype=torch.float16, device=device)
    far = memory.as_strided((2, 3, 16), (16, 2**30, 1))
    near = torch.randn(2, 3, 16, device=device).half()
    first, last = torch.tensor([0], device=device), torch.tensor([2], device=device)
    move_blocks(near, far, first, last)
    assert torch.equal(far[:, 2], near[:, 0])
    move_blocks(far, near, last, last)
    assert torch.equal(near[:, 2], near[:, 0])


def test_no_pairs_is_no_launch(device: torch.device) -> None:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    pool = torch.ones(2, 3, 4, device=device)
    copy_blocks(pool, none, none)
    assert torch.equal(pool, torch.ones_like(pool))


def test_blocks_in_pieces_are_refused(device: torch.device) -> None:
    pool = torch.zeros(2, 3, 4, 8, device=device).transpose(2, 3)
    pair = torch.tensor([0], device=device), torch.tensor([1], device=device)
    with pytest.raises(ValueError, match="the source's strides"):
        copy_blocks(pool, *pair)
    with pytest.raises(ValueError, match="the target's strides"):
        move_blocks(torch.zeros(2, 3, 4, 8, device=device), pool, *pair)


def test_the_operators_are_well_formed(device: torch.device) -> None:
    pool, other = torch.randn(2, 2, 3, 4, device=device)
    pair = torch.tensor([1], device=device), torch.tensor([2], device=device)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(copy_blocks_op, (pool, *pair), test_utils=tests)
    torch.library.opcheck(move_blocks_op, (pool, other, *pair), test_utils=tests)
