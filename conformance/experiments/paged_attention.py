"""Paged attention on its own, asked directly and without a model around it."""

from collections.abc import Iterator

from pagetwin.conformance.adapters.protocol import Adapter, AdapterLied, AttendingAdapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget


class PagedAttention:
    """Random cases at the edges of blocks, windows and chunks, until the budget ends."""

    id = "paged-attention"
    judges = (
        "num.attn",
        "num.mask",
        "num.poison-free",
        "num.table-permutation-bitwise",
        "num.scaling",
    )
    needs = frozenset({Flag.ATTENTION})
    weight = 1.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        # Here, because an engine without a model needs no torch.
        from pagetwin.conformance.numerics.attention_trials import judge_rounds

        if not isinstance(adapter, AttendingAdapter):
            raise AdapterLied("the adapter claims 'attention' but has no method attend")
        yield from judge_rounds(adapter, budget, seed)
