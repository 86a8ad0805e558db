"""The embedding kernel against its reference, bit for bit."""

import pytest
import torch

from pagetwin.kernels import reference_layers as reference
from pagetwin.kernels.embedding import embed_tokens, embed_tokens_op

VOCAB_SIZE = 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 576, 3000])
def test_gathers_what_the_reference_gathers(
    device: torch.device, size: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCAB_SIZE, size, generator=generator).to(device, dtype)
    token_ids = torch.tensor([0, 3, VOCAB_SIZE - 1, 3], device=device)
    out = embed_tokens(token_ids, table)
    assert torch.equal(out, table[token_ids])
    assert torch.equal(out, reference.embed_tokens(token_ids, table))


def test_tokens_that_only_the_device_knows_are_looked_up(device: torch.device) -> None:
    table = torch.arange(1.0, VOCAB_SIZE + 1, device=device)[:, None].expand(-1, 4).contiguous()
    token_table = torch.full((3, 9), -1, dtype=torch.int32, device=device)
    token_table[2, 7] = 11
    token_table[0, 8] = 12
    token_ids = torch.tensor([5, -1, -1, -1, 6], device=device)
    rows = torch.tensor([2, 2, 0, 1, 0], dtype=torch.int32, device=device)
    positions = torch.tensor([7, 7, 8, 3, 0], device=device)
    arguments = token_ids, table, token_table, rows, positions
    out = embed_tokens(*arguments)
    assert out[:, 0].tolist() == [6, 12, 13, 0, 7]
    assert torch.equal(out, reference.embed_tokens(*arguments))


def test_what_stands_beside_known_tokens_and_unknown_ids_is_not_read(device: torch.device) -> None:
    memory = torch.full((3 + VOCAB_SIZE + 3, 8), torch.nan, device=device)
    memory[3:-3] = 1
    table = memory[3:-3]
    token_table = torch.full((1, 4), VOCAB_SIZE, dtype=torch.int32, device=device)
    token_ids = torch.tensor([0, -1, -1, VOCAB_SIZE, 2], device=device)
    far = 2**40
    rows = torch.tensor([2**31 - 1, 0, 0, 7, 7], dtype=torch.int32, device=device)
    positions = torch.tensor([far, 0, 3, far, far], device=device)
    out = embed_tokens(token_ids, table, token_table, rows, positions)
    assert out[:, 0].tolist() == [1, 0, 0, 0, 1]


def test_rows_more_than_two_to_the_31_elements_away_are_reached(device: torch.device) -> None:
    # Untouched memory costs nothing on a CPU.
    memory = torch.empty(2**31 + 8, dtype=torch.float16, device=device)
    table = memory.as_strided((3, 8), (2**30, 1))
    table[2] = torch.arange(8)
    out = embed_tokens(torch.tensor([2], device=device), table)
    assert torch.equal(out[0], table[2])


def test_no_tokens_is_no_launch(device: torch.device) -> None:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert embed_tokens(none, torch.zeros(5, 8, device=device)).shape == (0, 8)


def test_the_operator_is_well_formed(device: torch.device) -> None:
    arguments = torch.tensor([1, 4], device=device), torch.randn(5, 8, device=device)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(embed_tokens_op, arguments, test_utils=tests)
