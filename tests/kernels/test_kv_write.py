"""The cache-write kernel against its reference, bit for bit."""

import pytest
import torch

from pagetwin.kernels import reference
from pagetwin.kernels.kv_write import write_kv, write_kv_op


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_kv_heads", [1, 3])
@pytest.mark.parametrize("head_size", [40, 64])
@pytest.mark.parametrize("block_size", [1, 16])
def test_writes_what_the_reference_writes(
    device: torch.device, dtype: torch.dtype, num_kv_heads: int, head_size: int, block_size: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    num_blocks = 64 // block_size
    shape = (2, num_blocks, block_size, num_kv_heads, head_size)
    cache = torch.randn(shape, generator=generator).to(device, dtype)
    k, v = torch.randn(2, 9, num_kv_heads, head_size, generator=generator).to(device, dtype)
    slots = torch.randperm(64, generator=generator)[:9]
    slots[[2, 8]] = -1
    expected = cache.clone()
    reference.write_kv(k, v, expected, slots.to(device))
    assert not torch.equal(expected, cache)
    write_kv(k, v, cache, slots.to(device))
    assert torch.equal(cache, expected)


def test_takes_keys_that_are_a_view_of_a_wider_tensor(device: torch.device) -> None:
    wide = torch.randn(5, 8, 32, device=device)
    k, v = wide[:, 4:6], wide[:, 6:]
    cache = torch.zeros(2, 4, 4, 2, 32, device=device)
    slots = torch.tensor([3, 5, 7, 9, 15], device=device)
    expected = cache.clone()
    reference.write_kv(k, v, expected, slots)
    write_kv(k, v, cache, slots)
    assert torch.equal(cache, expected)


def test_blocks_more_than_two_to_the_31_elements_away_are_reached(device: torch.device) -> None:
    # Untouched memory costs nothing on a CPU; blocks lie 2^30 elements apart.
    memory = torch.empty(2**31 + 64, dtype=torch.float16, device=device)
    cache = memory.as_strided((2, 3, 1, 1, 32), (32, 2**30, 32, 32, 1))
    k, v = torch.randn(2, 1, 1, 32, device=device).half()
    write_kv(k, v, cache, torch.tensor([2], device=device))
    assert torch.equal(cache[0, 2, 0], k[0])
    assert torch.equal(cache[1, 2, 0], v[0])


def test_heads_that_do_not_lie_together_are_refused(device: torch.device) -> None:
    k = torch.zeros(3, 2, 32, device=device).transpose(0, 1)
    cache = torch.zeros(2, 4, 4, 3, 32, device=device)
    with pytest.raises(ValueError, match="k has strides"):
        write_kv(k, k, cache, torch.tensor([0, 1], device=device))


def test_no_tokens_is_no_launch(device: torch.device) -> None:
    k = torch.zeros(0, 2, 32, device=device)
    cache = torch.ones(2, 4, 4, 2, 32, device=device)
    write_kv(k, k, cache, torch.zeros(0, dtype=torch.int64))
    assert torch.equal(cache, torch.ones_like(cache))


def test_the_operator_is_well_formed(device: torch.device) -> None:
    new = torch.randn(2, 3, 2, 32, device=device)
    cache = torch.zeros(2, 4, 4, 2, 32, device=device)
    slots = torch.tensor([3, -1, 7], device=device)
    torch.library.opcheck(
        write_kv_op, (*new, cache, slots), test_utils=("test_schema", "test_faketensor")
    )
