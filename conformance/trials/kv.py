"""The KV memory of a small model in runs that are short of memory: stale slots, swapped blocks."""

from contextlib import closing

from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.experiments.kv_memory import judge_stale, judge_swapped
from pagetwin.conformance.faults.settings import settings
from pagetwin.conformance.properties import Violation


def judge_kv(seed: int, index: int) -> list[Violation]:
    """One run, spoilt where nobody may read or watched at its swaps, in turn."""
    with closing(make_adapter("pagetwin:random?device=cpu")) as adapter:
        crowds = settings(adapter.capabilities(), seed=100_000 * seed + index)
        if index % 2:
            piece = judge_stale(adapter, list(crowds.values())[index // 2 % len(crowds)])
        else:
            piece = judge_swapped(adapter, crowds["swap"])
    return [] if piece.violation is None else [piece.violation]
