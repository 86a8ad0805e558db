"""Attention over a paged cache, on the batches that flash-attn 3 was measured on.

32 query heads, 8 KV heads of size 128, blocks of 16 tokens in random order. Names are those of
reports/baselines/peers.json.
"""

from typing import NamedTuple

import torch

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 32, 8, 128, 16


class Batch(NamedTuple):
    """Of each sequence, the rows that it has in the step and its keys, the rows' own included."""

    name: str
    num_rows: list[int]
    num_keys: list[int]

    @property
    def num_bytes(self) -> int:
        """Keys and values of all sequences, queries in and results out, two bytes a number."""
        cached = sum(self.num_keys) * NUM_KV_HEADS * HEAD_SIZE * 2 * 2
        return cached + sum(self.num_rows) * NUM_HEADS * HEAD_SIZE * 2 * 2

    @property
    def flops(self) -> int:
        """Of two products: a row sees the keys before the step, and those of the step up to it."""
        seen = sum(
            rows * (keys - rows) + rows * (rows + 1) // 2
            for rows, keys in zip(self.num_rows, self.num_keys, strict=True)
        )
        return 4 * NUM_HEADS * HEAD_SIZE * seen


def attention_batches() -> list[Batch]:
    """The peers' fifteen, in their order."""
    generator = torch.Generator().manual_seed(1)

    def mixed(count: int) -> list[int]:
        lengths: list[int] = torch.randint(64, 4096, (count,), generator=generator).tolist()
        return lengths

    decodes = [(1, 1024), (1, 8192), (1, 32768), (8, 4096), (32, 2048)]
    decodes += [(64, 1024), (128, 1024), (256, 1024), (32, 8192)]
    batches = [Batch(f"decode_b{b}_c{c}", [1] * b, [c] * b) for b, c in decodes]
    batches.append(Batch("decode_b128_mixed64-4096", [1] * 128, mixed(128)))
    prefills = [(8, 2048), (2, 8192), (1, 16384)]
    batches += [Batch(f"prefill_b{b}_s{s}", [s] * b, [s] * b) for b, s in prefills]
    batches.append(Batch("chunk_b4_q512_ctx4096", [512] * 4, [4608] * 4))
    both = Batch("mixed_64dec_2chunk", [1] * 64 + [512, 1024], [*mixed(64), 512, 2048])
    return [*batches, both]
