"""Trials of paged attention: error bounds, masks, poison, placement, and how errors grow.

Pools are hostile: NaN, infinities and large numbers wherever nothing should be read. Bounds are per
element and derived (kernels/reference.py); what must not matter may not change a bit.
"""

import math
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from pagetwin.conformance.adapters.protocol import AttendingAdapter
from pagetwin.conformance.numerics.attention import used_of_bound
from pagetwin.conformance.numerics.scaling import SLOPE_LIMIT, fit
from pagetwin.conformance.properties import violation
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.kernels.trial import Span, exact_attention, make_sequence

BOUND = "num.attn"
SCALING = "num.scaling"
POISON = "num.poison-free"
MASK = "num.mask"
PLACEMENT = "num.table-permutation-bitwise"

POISONS = (0.0, torch.inf, -torch.inf, 3e4)
SCALING_LENGTHS = (128, 256, 512, 1024, 2048)
CASES_A_ROUND = 6


class AttentionCase(NamedTuple):
    spans: tuple[Span, ...]
    block_size: int
    sliding_window: int

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.spans[0].sequence.q.shape[2])

    def __str__(self) -> str:
        q, k, _ = self.spans[0].sequence
        rows = ", ".join(f"[{span.start}, {span.end})" for span in self.spans)
        dtype = str(q.dtype).removeprefix("torch.")
        return (
            f"{dtype}, heads {q.shape[1]}/{k.shape[1]} of {q.shape[2]}, blocks of "
            f"{self.block_size}, window {self.sliding_window}, rows {rows}"
        )


def judge_rounds(adapter: AttendingAdapter, budget: Budget, seed: int) -> Iterator[Evidence]:
    """The scaling law, then random cases at the edges of blocks, windows and chunks."""
    random = Random(f"attention {seed}")
    yield _judge_scaling(adapter, seed)
    rounds = 0
    while budget.allows(rounds):
        for _ in range(CASES_A_ROUND):
            yield from _judge_case(adapter, random_case(random), random)
        rounds += 1


def random_case(random: Random) -> AttentionCase:
    """One to four sequences of one shape; lengths and windows at and beside the edges of blocks."""
    num_kv_heads = random.choice((1, 2, 3))
    block_size = random.choice((1, 8, 16, 24, 64))
    edges = [max(1, block_size * n + off) for n in (0, 1, 2, 5) for off in (-1, 0, 1)]
    num_heads = num_kv_heads * random.choice((1, 2, 4, 8))
    head_size = random.choice((32, 64, 80, 128))
    dtype = random.choice((torch.float32, torch.bfloat16, torch.float16))
    spans = []
    for _ in range(random.randint(1, 4)):
        length = random.choice(edges)
        rows = random.choice((1, length, random.randint(1, length)))
        sequence = make_sequence(
            length,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            dtype=dtype,
            seed=random.randrange(2**31),
        )
        spans.append(Span(sequence, length - rows, length))
    window = random.choice((0, 0, 1, block_size, block_size + 1))
    return AttentionCase(tuple(spans), block_size, window)


def _attend(
    adapter: AttendingAdapter, case: AttentionCase, *, poison: float = torch.nan, placement: int = 0
) -> Tensor:
    return adapter.attend(
        case.spans,
        block_size=case.block_size,
        scale=case.scale,
        sliding_window=case.sliding_window,
        poison=poison,
        placement_seed=placement,
    )


def _judge_case(
    adapter: AttendingAdapter, case: AttentionCase, random: Random
) -> Iterator[Evidence]:
    out = _attend(adapter, case)
    used = used_of_bound(out, case.spans, scale=case.scale, sliding_window=case.sliding_window)
    yield _evidence(
        BOUND, case, used > 1, f"an element is off by {used:.3g} times its bound", {"used": used}
    )
    poison = random.choice(POISONS)
    again = _attend(adapter, case, poison=poison)
    is_clean = bool(out.isfinite().all()) and torch.equal(again, out)
    yield _evidence(POISON, case, not is_clean, f"NaN or {poison:g} where nothing is read shows")
    moved = _attend(adapter, case, placement=random.randint(1, 99))
    yield _evidence(
        PLACEMENT, case, not torch.equal(moved, out), "other physical blocks give other bits"
    )
    yield from _judge_mask(adapter, case, out, random)


def _judge_mask(
    adapter: AttendingAdapter, case: AttentionCase, out: Tensor, random: Random
) -> Iterator[Evidence]:
    """Changes one key and value: the rows that may see it must change, all others not a bit."""
    which = random.randrange(len(case.spans))
    span = case.spans[which]
    position = random.randrange(span.end)
    k, v = span.sequence.k.clone(), span.sequence.v.clone()
    k[position] += 1
    # By so much that even a key of little weight shows.
    v[position] += 64
    changed = span._replace(sequence=span.sequence._replace(k=k, v=v))
    spans = (*case.spans[:which], changed, *case.spans[which + 1 :])
    after = _attend(adapter, case._replace(spans=spans))
    seen = _rows_that_see(case, which, position)
    differs = (after != out).flatten(1).any(dim=1)
    # In half precision a key of little weight may be rounded away where it is seen.
    is_exact = out.dtype == torch.float32
    wrong = ((differs & ~seen) | (seen & ~differs & is_exact)).nonzero().flatten().tolist()
    message = f"row {wrong[0] if wrong else ''} of the batch answers wrongly to position {position}"
    yield _evidence(MASK, case, bool(wrong), f"{message} of sequence {which}")


def _rows_that_see(case: AttentionCase, which: int, position: int) -> Tensor:
    """bool [rows of the batch]"""
    parts = []
    for i, span in enumerate(case.spans):
        rows = torch.arange(span.start, span.end)
        window = case.sliding_window or span.end
        sees = (rows >= position) & (rows < position + window)
        parts.append(sees if i == which else torch.zeros_like(sees))
    return torch.cat(parts)


def _judge_scaling(adapter: AttendingAdapter, seed: int) -> Evidence:
    """Decode rows over growing contexts; the 99 % quantile of |error| / sum p |v|."""
    errors = []
    for length in SCALING_LENGTHS:
        sequences = [
            make_sequence(length, num_heads=4, num_kv_heads=2, head_size=64, seed=seed + i)
            for i in range(4)
        ]
        case = AttentionCase(tuple(Span(s, length - 1, length) for s in sequences), 16, 0)
        exact = exact_attention(case.spans, scale=case.scale)
        relative = (_attend(adapter, case).double() - exact.out).abs() / exact.weighted_values
        errors.append(float(relative.nan_to_num(nan=torch.inf).flatten().quantile(0.99)))
    if not torch.tensor(errors).isfinite().all():
        return _evidence(SCALING, None, True, f"errors over contexts {SCALING_LENGTHS}: {errors}")
    tiny = torch.finfo(torch.float32).eps / 64
    law = fit(SCALING_LENGTHS, [max(error, tiny) for error in errors])
    highest = torch.finfo(torch.float32).eps * 64
    is_wrong = law.slope > SLOPE_LIMIT or max(errors) > highest
    return _evidence(
        SCALING,
        None,
        is_wrong,
        f"errors over contexts {SCALING_LENGTHS} are {errors}: slope {law.slope:.2f} of the "
        f"logarithms, at most {SLOPE_LIMIT:g}, and each at most {highest:.2g}",
        {"slope": law.slope},
    )


def _evidence(
    property_id: str,
    case: AttentionCase | None,
    is_wrong: bool,
    message: str,
    figures: dict[str, float] | None = None,
) -> Evidence:
    found = None
    if is_wrong:
        where = {} if case is None else {"case": case}
        found = violation(property_id, -1, message, **where)
    return Evidence(property_id=property_id, violation=found, figures=figures or {})
