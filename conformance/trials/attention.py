"""A hostile paged batch through the torch attention backend, against float64."""

from random import Random
from typing import Any

import torch
from torch import Tensor

from pagetwin.conformance.numerics.attention import attend, used_of_bound
from pagetwin.conformance.properties import Violation, violation
from pagetwin.engine.attention.torch_backend import TorchBackend
from pagetwin.kernels.trial import Span, make_sequence

LENGTHS = (1, 2, 5, 16, 33, 127, 128, 129, 200, 256, 257, 300)
"""Around the edges of blocks and of tiles."""


def judge_attention(seed: int, index: int) -> list[Violation]:
    """One batch of decodes, chunks and whole prompts: exact within its error bound, and the same
    bits whatever stands in the slots that nothing may read, and wherever the blocks lie."""
    random = Random(f"attention {seed} {index}")
    num_kv_heads = random.choice((1, 2))
    heads: dict[str, Any] = {
        "num_heads": num_kv_heads * random.choice((1, 2, 4)),
        "num_kv_heads": num_kv_heads,
        "head_size": random.choice((16, 32)),
    }
    spans = []
    for number in range(random.randint(1, 4)):
        end = random.choice(LENGTHS)
        start = random.choice((0, end - 1, random.randrange(end)))
        sequence = make_sequence(end, seed=random.randrange(2**30) + number, **heads)
        spans.append(Span(sequence, start, end))
    scale = random.choice((0.125, 0.25, 1.0))
    window = random.choice((0, 0, 1, 7, 64, 128, 129))
    soft_cap = random.choice((0.0, 0.0, 5.0))
    block_size = random.choice((1, 8, 16))
    case = {"window": window, "soft_cap": soft_cap, "block_size": block_size}
    rows = [(span.start, span.end) for span in spans]

    def run(poison: float = torch.nan, placement_seed: int = 0) -> Tensor:
        return attend(
            TorchBackend,
            spans,
            block_size=block_size,
            scale=scale,
            sliding_window=window,
            soft_cap=soft_cap,
            poison=poison,
            placement_seed=placement_seed,
        )

    try:
        out = run()
        clean, moved = run(poison=0.0), run(placement_seed=1)
    except Exception as error:  # whatever it is: the batch is a valid one
        message = f"attention raised {type(error).__name__}: {error}"
        return [violation("life.no-crash", -1, message, rows=rows, **case)]
    found = []
    used = used_of_bound(out, spans, scale=scale, sliding_window=window, soft_cap=soft_cap)
    if not used <= 1.0:
        message = "an output is further from the exact one than rounding explains"
        found.append(violation("num.attn", -1, message, used_of_bound=used, rows=rows, **case))
    if not torch.equal(out.nan_to_num(), clean) or out.isnan().any():
        message = "what stands in slots that are nobody's shows in the output"
        found.append(violation("num.poison-free", -1, message, rows=rows, **case))
    if not torch.equal(out.nan_to_num(), moved.nan_to_num()):
        message = "the placement of blocks shows in the output"
        found.append(violation("num.table-permutation-bitwise", -1, message, rows=rows, **case))
    return found
