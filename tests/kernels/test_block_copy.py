"""The block-copy kernel against its reference, bit for bit."""

import pytest
import torch

from pagetwin.kernels import reference
from pagetwin.kernels.block_copy import copy_blocks


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


def test_no_pairs_is_no_launch(device: torch.device) -> None:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    pool = torch.ones(2, 3, 4, device=device)
    copy_blocks(pool, none, none)
    assert torch.equal(pool, torch.ones_like(pool))


def test_blocks_in_pieces_are_refused(device: torch.device) -> None:
    pool = torch.zeros(2, 3, 4, 8, device=device).transpose(2, 3)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="must be contiguous"):
        copy_blocks(pool, none, none)


def test_the_operator_is_well_formed(device: torch.device) -> None:
    pool = torch.randn(2, 3, 4, device=device)
    pairs = torch.tensor([1], device=device), torch.tensor([2], device=device)
    torch.library.opcheck(
        copy_blocks, (pool, *pairs), test_utils=("test_schema", "test_faketensor")
    )
